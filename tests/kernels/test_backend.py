"""Backends do without any of their kernels."""

import pytest
from roost.kernels import XLA, Backend, GpuSizes, Kernel, backends

GPU = backends.gpu_backend(GpuSizes(101_376, 58))


@pytest.mark.parametrize("backend", [*backends.BACKENDS.values(), GPU], ids=lambda backend: backend.name)
def test_every_kernel_can_be_replaced(backend: Backend) -> None:
    assert not backend.without(backend.names).names
    for name in backend.names:
        assert name not in backend.without([name]).names
        assert name in backend.only(name).names
        assert backend.only(name).without([name]).names == ()


def test_the_other_kernels_stay() -> None:
    names = backends.TPU.names
    assert backends.TPU.without(["sample"]).names == tuple(name for name in names if name != "sample")
    block = ("recurrent_step", "recurrent_chunk")
    assert backends.TPU.without(block[:1]).names == tuple(name for name in names if name not in block)
    assert backends.TPU.only(block[1]).names == block, "one cannot be used alone"
    assert "top_k" in [kernel.op for kernel in GPU.only("rg_lru").kernels], "it is no kernel of a program"


def test_the_first_kernel_that_takes_the_arguments_computes() -> None:
    backend = Backend(
        "some",
        (
            Kernel("other op", ("a",), lambda x: "another op"),
            Kernel("op", ("b",), lambda x: "small", lambda x: x < 10),
            Kernel("op", ("c",), lambda x: "even", lambda x: x % 2 == 0),
        ),
    )
    assert [backend.dispatch("op", lambda x: "xla", x) for x in (4, 12, 13)] == ["small", "even", "xla"]
    assert [backend.only("c").dispatch("op", lambda x: "xla", x) for x in (4, 13)] == ["even", "xla"]


def test_a_backend_is_shown_alike_in_every_process() -> None:
    """Traced programs are kept under a key that it is part of, so that no address of a function may show."""
    shown = [repr(backend) for backend in (*backends.BACKENDS.values(), GPU)]
    assert not [text for text in shown if "0x" in text]


def test_an_unknown_kernel_takes_all_with_it() -> None:
    assert backends.TPU.without(["sample", "other"]) == XLA
