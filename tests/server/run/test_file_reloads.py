"""Files of keys and certificates that change while a server runs."""

import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest
from certificates import make_certificate
from prometheus_client import CollectorRegistry
from roost.engine import ConfigError
from roost.server.observability.metrics import ReloadMetrics
from roost.server.run.file_reloads import FileReloads, FileSource
from roost.server.run.http_server import certificate_expiry
from roost.server.terminal.exits import Signals


@pytest.mark.parametrize("year", [2049, 2050], ids=["UTCTime", "GeneralizedTime"])
def test_the_first_certificate_of_a_file_has_an_expiry(year: int, tmp_path: Path) -> None:
    expiry = datetime(year, 3, 1, 12, 30, tzinfo=UTC)
    (tmp_path / "chain").write_bytes(b"a text before it\n" + make_certificate(expiry)[0] + make_certificate()[0])
    assert certificate_expiry(tmp_path / "chain") == expiry.timestamp()


class Watched:
    """A file that is watched, and the texts that were loaded from it. A text "bad" cannot be loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loaded: list[str] = []
        self.registry = CollectorRegistry()
        source = FileSource("file", [path], self._load)
        self.reloads = FileReloads([source], Signals(), ReloadMetrics(self.registry))

    def _load(self) -> None:
        text = self.path.read_text() if self.path.exists() else "bad"
        if text == "bad":
            raise ConfigError("file: entry 1 is bad")
        self.loaded.append(text)

    @property
    def is_successful(self) -> bool:
        return self.registry.get_sample_value("roost_config_last_reload_successful") == 1


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    path = tmp_path / "keys"
    path.write_text("one")
    return Watched(path)


def test_a_change_is_loaded_once_it_is_the_same_in_two_looks(watched: Watched) -> None:
    watched.reloads.look()
    watched.path.write_text("two, half")
    watched.reloads.look()
    watched.path.write_text("two, whole")
    watched.reloads.look()
    assert watched.loaded == []
    for _ in range(3):
        watched.reloads.look()
    assert watched.loaded == ["two, whole"]


def test_a_replaced_link_is_a_change(tmp_path: Path) -> None:
    """Kubernetes mounts a secret as links into a folder, and replaces the link to the folder."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_text(name)
    (tmp_path / "..data").symlink_to("old")
    (tmp_path / "keys").symlink_to("..data/keys")
    watched = Watched(tmp_path / "keys")
    (tmp_path / "..data_tmp").symlink_to("new")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    watched.reloads.look()
    watched.reloads.look()
    assert watched.loaded == ["new"]


@pytest.mark.parametrize("fault", ["bad", "missing"])
def test_a_file_that_became_wrong_is_reported_once_until_it_is_right(
    watched: Watched, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    watched.path.write_text("bad")
    if fault == "missing":
        watched.path.unlink()
    for _ in range(4):
        watched.reloads.look()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == ("reload failed, and the previous files stay in use: file: entry 1 is bad")
    assert not watched.is_successful
    watched.path.write_text("right")
    watched.reloads.look()
    watched.reloads.look()
    assert watched.loaded == ["right"]
    assert watched.is_successful


def test_a_signal_loads_files_that_have_not_changed(watched: Watched) -> None:
    watched.reloads.reload_all()
    assert watched.loaded == ["one"]
