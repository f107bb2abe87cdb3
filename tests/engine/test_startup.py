"""The cache of compiled programs: where it is, and what is wrong with a folder."""

import errno
import os
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from cache_settings import restored
from roost.engine.core.errors import ConfigError
from roost.engine.startup import configure_jax
from roost.engine.worker.compilation import compile_all, compile_lowered


@pytest.fixture
def cache_settings_restored() -> Iterator[None]:
    with restored():
        yield


@pytest.mark.usefixtures("cache_settings_restored")
def test_compiled_programs_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "when needed"
    configure_jax(folder)
    reports: list[tuple[int, int]] = []
    twice = jax.jit(lambda x: 2 * x + jnp.float32(0.125))
    lower: dict[str, Any] = {"twice": lambda: twice.lower(jnp.zeros(3)), "again": lambda: twice.lower(jnp.zeros(5))}
    with ThreadPoolExecutor(1) as executor:
        compiled = compile_all(
            lower, partial(compile_lowered, options={}), executor, lambda done, total: reports.append((done, total))
        )
    assert compiled["twice"].result()(jnp.ones(3)).tolist() == [2.125] * 3
    assert reports == [(1, 2), (2, 2)]
    assert any(folder.iterdir())


@pytest.mark.usefixtures("cache_settings_restored")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_without_room_nothing_is_kept_and_all_goes_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(dir: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    with warnings.catch_warnings():
        configure_jax(tmp_path)
    (record,) = caplog.records
    assert record.getMessage() == f"compile_cache {tmp_path}: no program will be kept there ({os.strerror(number)})"


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match=r"compile_cache .*/file/x: cannot be written to .*or off"):
        configure_jax(file / "x")
