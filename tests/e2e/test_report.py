"""`roost report` through the command line: by default in this process, and in sweeps with a process for each part."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from cache_settings import restored
from forbidden_imports import FORBIDDING
from roost.engine import check_kernels
from roost.engine.devices.platform import choose_platform
from roost.engine.types.config import ONE_DEVICE
from roost.server.commands.main import app
from roost.server.commands.options import ReportOptions
from roost.server.commands.report import checks, command
from roost.server.commands.report.parts import PARTS, ReportPart, run_apart
from roost.server.llm.llm import LLM
from server_process import SHAPES, SLOTS
from shared_programs import compiled_once
from typer.testing import CliRunner

TINY = Path(__file__).parents[1] / "golden" / "tiny-a" / "hf"

WRONG = """
from dataclasses import replace
from roost.engine.devices import platform
from roost.kernels import XLA, Backend, Kernel
from roost.kernels.recurrent_block.xla import rg_lru

def wrong(x, input_gate, recurrence_gate, log_decay, h0, positions):
    y, last = rg_lru(x, input_gate, recurrence_gate, log_decay, h0, positions, XLA)
    return 1.1 * y, last

platform.CPU = replace(platform.CPU, kernels=Backend("planted", (Kernel("rg_lru", ("rg_lru",), wrong),)))
platform.native.is_available = lambda: False
"""
"""Start of every process: a kernel that is wrong."""

(SPEED,) = [part for part in PARTS if part.name == "speed"]

ALL = ["machine", "kernels", "demo", "speed", "job", "profile", "ahead"]


def reported(folder: Path, *arguments: str, start: str = "") -> tuple[int, Mapping[str, Any], str]:
    """The status, the JSON file and the page of a report; `start` runs first in each of its processes."""
    (folder / "start").mkdir()
    (folder / "start/sitecustomize.py").write_text(start)
    command = [sys.executable, "-m", "roost.server", "report", *arguments, "--out", str(folder / "out")]
    paths = [str(folder / "start"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=3300)
    assert (folder / "out/report.json").is_file(), ended.stderr
    found = json.loads((folder / "out/report.json").read_text())
    return ended.returncode, found, (folder / "out/report.md").read_text()


def test_a_part_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    part = ReportPart("machine", "checks", "The machine", 0.01)
    found = run_apart(part, ReportOptions(model="demo", out=tmp_path))
    assert found["error"] == "it was ended after 0.01 s"


def test_a_part_that_fails_says_why(tmp_path: Path) -> None:
    options = ReportOptions(model=str(tmp_path / "missing"), out=tmp_path)
    found = run_apart(SPEED, options)
    assert "missing" in found["error"]
    assert "\n" not in found["error"]


RUNS_SPEED = """
import sys
from pathlib import Path
from roost.server.commands.options import ReportOptions
from roost.server.commands.report.parts import PARTS, run_apart
(speed,) = [part for part in PARTS if part.name == "speed"]
run_apart(speed, ReportOptions(model="demo", out=Path(sys.argv[1])))
"""
"""Runs a part that takes seconds after its first line."""


@pytest.mark.full
def test_a_part_ends_with_its_report(tmp_path: Path) -> None:
    report = subprocess.Popen([sys.executable, "-c", RUNS_SPEED, str(tmp_path)], stderr=subprocess.PIPE)
    assert report.stderr is not None
    report.stderr.readline()  # the part loads weights
    report.kill()
    _, rest = report.communicate()  # until the part, which has the same stderr, has ended too
    assert b"decode" not in rest


def test_a_wrong_option_is_one_line(tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["report", "demo", "--without-kernels", "magic", "--out", str(tmp_path)])
    assert ended.exit_code == 2
    assert ended.stderr.startswith("roost: --without-kernels ")
    assert ended.stderr.count("\n") == 1
    assert "'magic'" in ended.stderr
    assert "rg_lru" in ended.stderr


def run_here(part: ReportPart, options: ReportOptions) -> dict[str, Any]:
    """Runs a part without a process, which would import JAX again."""
    return {**part.run(options), "seconds": 0.0}


@pytest.mark.parametrize("num_checks", [1, pytest.param(None, marks=pytest.mark.full)])
def test_a_quick_report(
    num_checks: int | None, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels are checked from the smallest step that this processor serves; a random model stands for the demo.

    So it has the programs of other tests' servers. What is expected of the demo comes from the same model.
    """
    values, model = tmp_path / "values.json", f"random:{tiny_config}"
    monkeypatch.setattr(command, "run_apart", run_here)
    monkeypatch.setattr(checks, "check_kernels", lambda *arguments: islice(check_kernels(*arguments), num_checks))
    monkeypatch.setattr(checks, "DEMO", model)
    monkeypatch.setattr(checks, "VALUES", values)
    monkeypatch.setenv("ROOST_PREFILL_CHUNK", SHAPES[-1])  # for the checks of the demo, too
    with restored(), compiled_once("tiny"):
        with LLM(model, slots=SLOTS) as llm:
            values.write_text(json.dumps(checks.values_of(llm)))
        ended = CliRunner().invoke(app, ["report", model, "--quick", *SHAPES, "--out", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out/report.json").read_text())
    assert (ended.exit_code, found["problems"]) == (0, []), ended.output
    assert list(found["parts"]) == ALL[:4]
    platform, checked = choose_platform(ONE_DEVICE), found["parts"]["kernels"]["checks"]
    names, steps = platform.kernels.names or ("xla",), ((min(platform.sizes.decode_rows), 1), (1, int(SHAPES[-1])))
    wanted = [(name, *step) for name in names for step in steps]
    assert {(check["kernel"], *check["shape"]) for check in checked} >= {*wanted[:num_checks]}
    assert num_checks in (None, len(checked))
    assert [row["requests"] for row in found["parts"]["speed"]["decode"]] == [1, 1]
    assert "All checks passed." in (tmp_path / "out/report.md").read_text()


@pytest.mark.sweep
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("model", ["demo", str(TINY)])
def test_a_whole_report(model: str, tmp_path: Path) -> None:
    status, found, page = reported(tmp_path, model)
    assert (status, found["problems"]) == (0, []), page
    assert list(found["parts"]) == ALL
    assert found["parts"]["job"]["result"]["requests"]["completed"] == 32
    assert found["parts"]["profile"]["operations"]
    assert list((tmp_path / "out/profile").rglob("*.xplane.pb"))
    assert found["parts"]["ahead"]["is_found"]


@pytest.mark.sweep
@pytest.mark.timeout(1800)
def test_a_wrong_kernel_is_named_and_left_out(tmp_path: Path) -> None:
    """The parts after it, in processes of their own and over HTTP, are right without it."""
    status, found, page = reported(tmp_path, "demo", start=WRONG)
    assert status == 1
    assert found["parts"]["kernels"]["wrong_kernels"] == found["without_kernels"] == ["rg_lru"]
    assert all(problem.startswith("rg_lru, prefill of ") for problem in found["problems"])
    assert not any("error" in part for part in found["parts"].values())
    assert "ran without rg_lru" in page


@pytest.mark.sweep
@pytest.mark.timeout(3600)
def test_parts_of_the_engine_need_no_web_packages(tmp_path: Path) -> None:
    web = ("fastapi", "starlette", "uvicorn", "psycopg", "llguidance")
    status, found, _ = reported(tmp_path, str(TINY), start=FORBIDDING.format(names=web))
    assert status == 1
    assert [name for name, part in found["parts"].items() if "error" in part] == ["job"]
    assert [*found["problems"]] == [problem for problem in found["problems"] if problem.startswith("A job over HTTP: ")]
