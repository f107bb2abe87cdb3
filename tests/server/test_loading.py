"""What is shown while an engine loads."""

import logging
from pathlib import Path

import platformdirs
import pytest
from roost.engine import EngineConfig, open_model
from roost.engine.model.source import DEMO_DIRECTORY
from roost.server.loading import LoadProgress, engine_config, summary
from roost.server.logging import request_id, set_up_logging
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


def test_the_summary_says_that_random_weights_are_noise() -> None:
    trained, drawn = (
        summary(open_model(name), EngineConfig(), 8, "it", "")[0]
        for name in ("demo", f"random:{DEMO_DIRECTORY}/config.json")
    )
    assert "noise" not in trained
    assert "noise" in drawn


def test_the_summary_tells_what_is_served_in_five_lines() -> None:
    lines = summary(open_model("demo"), EngineConfig(), 8, "demo", "http://127.0.0.1:8000")
    assert len(lines) == 5
    assert "bfloat16" in lines[1]
    assert "8, " in lines[2]
    assert lines[2].endswith(" together")
    assert lines[3].endswith("8 requests at a time, 256 more may wait")
    assert lines[4].endswith("http://127.0.0.1:8000/v1")


def test_the_state_is_as_large_as_its_dtype_makes_it() -> None:
    source = open_model("random:2b")
    assert "16.4 MiB" in summary(source, EngineConfig(), 8, "2b", "")[2]
    assert "16.4 MiB" not in summary(source, EngineConfig(dtype="float32"), 8, "2b", "")[2]


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
