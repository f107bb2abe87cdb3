"""Where settings come from, and which of them wins."""

from pathlib import Path
from typing import Any

import pytest
from roost.server.settings import Settings, SettingsError, load_settings, mesh_sizes


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"ROOST_{name.upper()}", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "roost.toml"
    path.write_text('port = 1\nmax_queue = 1\nslots = 1\nmodel = "file"\n')
    return path


def test_defaults() -> None:
    settings = load_settings({})
    assert (settings.model, settings.host, settings.port) == ("demo", "127.0.0.1", 8000)
    assert (settings.slots, settings.max_queue, settings.prefill_chunk) == (None, 256, 512)


def test_a_flag_beats_the_environment_and_that_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_PORT", "2")
    monkeypatch.setenv("ROOST_MAX_QUEUE", "2")
    settings = load_settings({"config": file, "port": 3})
    assert (settings.port, settings.max_queue, settings.slots) == (3, 2, 1)
    assert settings.model == "file"


def test_the_file_may_be_named_by_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_CONFIG", str(file))
    assert load_settings({}).port == 1


@pytest.mark.parametrize(("given", "slots"), [("auto", None), ("4", 4), (4, 4)])
def test_slots_are_a_number_or_auto(given: Any, slots: int | None) -> None:
    assert load_settings({"slots": given}).slots == slots


@pytest.mark.parametrize(("given", "seconds"), [("off", None), ("0.5", 0.5), (60, 60.0)])
def test_requests_have_a_time_or_none(given: Any, seconds: float | None) -> None:
    assert load_settings({"request_timeout": given}).request_timeout == seconds


@pytest.mark.parametrize(("given", "taken"), [("auto", "auto"), ("off", "off"), ("/x", Path("/x"))])
def test_compiled_programs_are_kept_in_a_folder(given: str, taken: Any) -> None:
    assert load_settings({"compile_cache": given}).compile_cache == taken


@pytest.mark.parametrize(
    ("given", "sizes"),
    [("auto", None), ("data=2,model=4", (2, 4)), ("model=4, data=2", (2, 4)), ("model=3", (1, 3)), ("data=2", (2, 1))],
)
def test_a_mesh_has_two_sizes(given: str, sizes: tuple[int, int] | None) -> None:
    assert mesh_sizes(load_settings({"mesh": given}).mesh) == sizes


@pytest.mark.parametrize("name", ["compile_cache", "state_cache_dir"])
@pytest.mark.parametrize("value", ["gs://bucket/folder", Path("gs://bucket/folder"), "s3://bucket"])
def test_a_bucket_is_no_folder(name: str, value: str | Path) -> None:
    """But what is mounted is one, whatever it is called."""
    with pytest.raises(SettingsError, match=rf"\A{name}: must be a folder; mount the bucket, as by GCS FUSE, .*bucket"):
        load_settings({name: value})
    assert getattr(load_settings({name: "/mnt/gs:/bucket"}), name) == Path("/mnt/gs:/bucket")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 65536),
        ("port", "tcp://10.0.0.1:8000"),
        ("slots", "many"),
        ("slots", "0"),
        ("dtype", "half"),
        ("quantize", "int4"),
        ("seed", -1),
        ("max_queue", 0),
        ("max_queue_tokens", 0),
        ("request_timeout", "never"),
        ("request_timeout", 0),
        ("drain_timeout", "inf"),
        ("drain_lag", -1),
        ("step_timeout", 0),
        ("api_key", ""),
        ("served_model_name", ""),
        ("mesh", "rows=2"),
        ("mesh", "data=0"),
        ("mesh", "model=2,model"),
        ("mesh", "4"),
        ("coordinator", "first"),
        ("coordinator", ":8482"),
        ("num_hosts", 0),
    ],
)
def test_a_bad_value_is_named_in_one_line(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=rf"\A{name}: .*\Z"):
        load_settings({name: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slotz = 4\nport = 1\nhots = 'x'", "unknown setting hots, slotz"),
        ("port = ", "not valid TOML"),
        ("config = 'other.toml'", "unknown setting config"),
        ("port = 'x'", "port: must be a whole number, not 'x'"),
    ],
)
def test_a_bad_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "roost.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_settings({"config": path})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nothing\.toml: cannot be read"):
        load_settings({"config": tmp_path / "nothing.toml"})


def test_the_key_is_not_shown() -> None:
    assert "sesame" not in repr(load_settings({"api_key": ["sesame"]}))
