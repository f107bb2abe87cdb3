"""What is shown while an engine loads."""

import logging
from pathlib import Path

import platformdirs
import pytest
from roost.engine import DeviceFacts, EngineConfig, MeshShape, open_model
from roost.engine.checkpoint.source import DEMO_DIRECTORY
from roost.server.lifecycle.engine_loading import LoadProgress, engine_config, greeting, summary
from roost.server.observability.logging import request_id, set_up_logging
from roost.server.settings import load_settings


def test_without_a_terminal_a_stage_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LoadProgress()
    for done in range(1, 4):
        progress("weights", done, 3)
    progress("compile", 1, 1)
    progress.close()
    progress.close()
    assert capsys.readouterr().err == "loading weights: 3 of 3\ncompiling: 1 of 1\n"


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: tmp_path / "roost")
    monkeypatch.delenv("ROOST_COMPILE_CACHE")
    assert engine_config(load_settings({})).compile_cache == tmp_path / "roost" / "programs"
    assert engine_config(load_settings({"compile_cache": "off"})).compile_cache is None
    assert engine_config(load_settings({"compile_cache": "/else"})).compile_cache == Path("/else")


def test_where_nothing_can_be_written_programs_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: tmp_path / "file")
    assert engine_config(load_settings({"compile_cache": "auto"})).compile_cache is None


@pytest.mark.parametrize("is_cached", [False, True])
def test_compiling_anew_says_that_later_starts_are_quicker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_cached: bool
) -> None:
    """Programs that are found in the cache add no file to it."""
    (tmp_path / "jit_step-1-cache").touch()
    progress = LoadProgress(tmp_path)
    for done in range(1, 4):
        if not is_cached:
            (tmp_path / f"jit_step-2{done}-cache").touch()
        progress("compile", done, 3)
    progress.close()
    line = f"compiling for the first time; the programs are kept in {tmp_path}, so later starts are quicker\n"
    assert capsys.readouterr().err == ("" if is_cached else line) + "compiling: 3 of 3\n"


CONFIG = EngineConfig()
CPU = DeviceFacts("cpu", 1, None, "cpu", None)


def summary_of(source: str = "demo", config: EngineConfig = CONFIG, device: DeviceFacts = CPU) -> dict[str, str]:
    """The values by their names."""
    lines = summary(open_model(source), config, 8, "it", "http://127.0.0.1:8000", device)
    return {name: value.strip() for name, value in (line.split(maxsplit=1) for line in lines)}


def test_the_summary_says_that_random_weights_are_noise() -> None:
    assert summary_of()["model"] == f"it, {DEMO_DIRECTORY}"
    assert "noise" in summary_of(f"random:{DEMO_DIRECTORY}/config.json")["model"]


def test_the_summary_tells_what_is_served() -> None:
    config = EngineConfig(compile_cache=Path("/programs"), state_cache_dir=Path("/states"))
    values = summary_of(config=config)
    assert values["address"] == "http://127.0.0.1:8000/v1"
    assert "bfloat16" in values["parameters"]
    assert values["slots"].startswith("8, ")
    assert values["slots"].endswith(" together")
    assert values["capacity"] == "8 requests at a time, 256 more may wait"
    assert values["programs"] == "/programs"
    assert values["prefixes"] == "cached in an eighth of free memory and 16 GiB of /states"
    assert "Ctrl-C" in values["stop"]
    assert summary_of(config=EngineConfig(state_cache_gib=0.0))["prefixes"] == "not cached"
    assert "not kept" in summary_of()["programs"]


@pytest.mark.parametrize(
    ("device", "shards", "shown"),
    [
        (CPU, MeshShape(), "CPU with native kernels"),
        (CPU._replace(num_devices=2), None, "2 x CPU without native kernels: several devices share the cores"),
        (CPU._replace(why_no_native_kernels="too old"), MeshShape(), "CPU without native kernels: too old"),
        (DeviceFacts("NVIDIA H100", 1, 0, "gpu"), MeshShape(), "NVIDIA H100 (gpu)"),
        (DeviceFacts("TPU v5 lite", 4, 0, "tpu"), None, "4 x TPU v5 lite (tpu)"),
    ],
)
def test_the_summary_names_the_device_and_its_kernels(
    device: DeviceFacts, shards: MeshShape | None, shown: str
) -> None:
    assert summary_of(config=EngineConfig(shards=shards), device=device)["device"] == shown


@pytest.mark.parametrize(
    ("address", "page"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/"),
        ("https://0.0.0.0:443", "https://localhost:443/"),
        ("http://[::]:8000", "http://localhost:8000/"),
        ("http://[::1]:8000", "http://[::1]:8000/"),
    ],
)
def test_the_greeting_has_an_address_that_a_browser_can_open(address: str, page: str) -> None:
    assert greeting(address).endswith(f" is ready. Chat in a browser: {page}")


def test_the_state_is_as_large_as_its_dtype_makes_it() -> None:
    assert "16.4 MiB" in summary_of("random:2b")["slots"]
    assert "16.4 MiB" not in summary_of("random:2b", EngineConfig(dtype="float32"))["slots"]


def test_log_lines_carry_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        set_up_logging()
        logging.getLogger("roost.test").info("outside")
        token = request_id.set("req_1")
        logging.getLogger("uvicorn.error").warning("inside")
        logging.getLogger("uvicorn.error").info("chatter")
        request_id.reset(token)
    finally:
        root.handlers[:], root.level = handlers, level
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("INFO    - outside")
    assert second.endswith("WARNING req_1 inside")
