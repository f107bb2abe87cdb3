"""Backends do without any of their kernels."""

from dataclasses import fields, replace

import pytest
from roost.kernels import XLA, Backend, backends
from roost.kernels.backend import _FIELDS


@pytest.mark.parametrize("backend", backends.BACKENDS.values(), ids=lambda backend: backend.name)
def test_every_kernel_can_be_replaced(backend: Backend) -> None:
    replaced = backend.without(_FIELDS)
    assert not [field.name for field in fields(Backend) if callable(getattr(replaced, field.name))]


def test_the_other_kernels_stay() -> None:
    assert backends.TPU.without(["sample"]) == replace(backends.TPU, sample=None)
    step = backends.TPU.without(["recurrent_step"])
    assert step == replace(backends.TPU, recurrent_step=None, recurrent_chunk=None), "one cannot be used alone"


def test_an_unknown_kernel_takes_all_with_it() -> None:
    assert backends.TPU.without(["sample", "other"]) == XLA
