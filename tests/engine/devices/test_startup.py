"""The cache of compiled programs: where it is, and what is wrong with a folder."""

import errno
import os
import stat
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from cache_settings import restored
from filelock import FileLock
from roost.engine.devices.platform import configure_jax
from roost.engine.types.errors import ConfigError
from roost.engine.worker.compilation import compile_lowered


@pytest.fixture
def cache_settings_restored() -> Iterator[None]:
    with restored():
        yield


@pytest.mark.usefixtures("cache_settings_restored")
def test_compiled_programs_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "when needed"
    configure_jax(folder)
    twice = compile_lowered(jax.jit(lambda x: 2 * x + jnp.float32(0.125)).lower(jnp.zeros(3)), {})
    assert twice(jnp.ones(3)).tolist() == [2.125] * 3
    names = {path.name for path in folder.iterdir()}
    assert any(name.endswith("-cache") for name in names)
    assert ".lockfile" in names  # JAX locks the folder while it writes, or else others may read half a program


@pytest.mark.usefixtures("cache_settings_restored")
def test_where_files_cannot_be_locked_programs_are_kept_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "acquire", fail)
    configure_jax(tmp_path)
    jax.jit(lambda x: 3 * x + jnp.float32(0.125)).lower(jnp.zeros(3)).compile()
    assert any(path.name.endswith("-cache") for path in tmp_path.iterdir())


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


@pytest.mark.parametrize("mode", [0o757, 0o777, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused(mode: int, tmp_path: Path) -> None:
    folder = tmp_path / "programs"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigError, match=rf"compile_cache .*/programs: .*mode {mode:04o}.*chmod go-w"):
        configure_jax(folder)


@pytest.mark.usefixtures("cache_settings_restored")
def test_a_folder_of_programs_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    earlier = os.umask(0)
    try:
        configure_jax(tmp_path / "programs")
    finally:
        os.umask(earlier)
    assert stat.S_IMODE((tmp_path / "programs").stat().st_mode) == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "programs"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    with pytest.raises(ConfigError, match=r"compile_cache .*/programs: belongs to user 12345.*or off"):
        configure_jax(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another group")
def test_a_group_may_write_if_it_has_no_other_members(tmp_path: Path, cache_settings_restored: None) -> None:
    folder = tmp_path / "programs"
    folder.mkdir()
    folder.chmod(0o775)
    configure_jax(folder)  # the group of root, whose only member is root
    os.chown(folder, -1, 12345)
    with pytest.raises(ConfigError, match="others may write to it"):
        configure_jax(folder)
