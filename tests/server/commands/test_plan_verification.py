"""Output and status of `roost plan --verify`, on a made-up verification; tests/tpu compiles real programs."""

import json

import pytest
from roost.engine import EngineConfig, ModelSource, Verification, VerifiedProgram
from roost.server.commands import plan
from roost.server.commands.main import app
from typer.testing import CliRunner

DECODE = VerifiedProgram("decode 512", 512, 15 * 2**30, 2**29, 52, True, 0.03)
REFUSED = VerifiedProgram("prefill 1x512", 1, 17 * 2**30, None, None, False, None)


class Compiler:
    """Takes the place of `verify_plan` and keeps what it was asked.

    Attributes:
      asked: Settings and chip of the last call.
    """

    def __init__(self, *programs: VerifiedProgram) -> None:
        self.asked: tuple[EngineConfig, str] | None = None
        self._programs = programs

    def __call__(self, source: ModelSource, settings: EngineConfig, chip: str, report: object) -> Verification:
        self.asked = settings, chip
        return Verification(settings.slots or 512, None if settings.slots else 520, int(15.75 * 2**30), self._programs)


def run(monkeypatch: pytest.MonkeyPatch, compiler: Compiler, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(plan, "verify_plan", compiler)
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(app, ["plan", "random:2b", "--verify", *arguments])
    return result.exit_code, result.stdout


def test_json_is_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    status, out = run(monkeypatch, Compiler(DECODE), "--json")
    assert status == 0
    assert json.loads(out) == {
        "slots": 512,
        "hbm_limit_bytes": 16_911_433_728,
        "programs": [
            {
                "name": "decode 512",
                "rows": 512,
                "hbm_bytes": 15 * 2**30,
                "temp_bytes": 2**29,
                "custom_calls": 52,
                "fits": True,
            }
        ],
    }


def test_what_does_not_fit_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    status, out = run(monkeypatch, Compiler(DECODE, REFUSED))
    assert status == 1
    words = [line.strip("│").split("│") for line in out.splitlines() if line.startswith("│")]
    rows = [[word.strip() for word in line] for line in words]
    assert rows == [
        ["decode 512", "15.00 GiB", "512.0 MiB", "yes"],
        ["prefill 1x512", "17.00 GiB", "", "NO"],
    ]
    assert "512 slots (the estimate of 520 does not fit)" in out
    assert max(map(len, out.splitlines())) <= 80


def test_the_options_of_serve_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(DECODE)
    options = ("--device", "v6e", "--mesh", "data=1,model=4", "--slots", "40", "--prefill-chunk", "1024")
    status, _ = run(monkeypatch, compiler, *options, "--quantize", "int8")
    assert status == 0
    assert compiler.asked is not None
    settings, chip = compiler.asked
    assert chip == "v6e"
    assert (settings.slots, settings.prefill_chunk, settings.quantize) == (40, 1024, "int8")
    assert settings.shards is not None
    assert (settings.shards.data, settings.shards.model) == (1, 4)


@pytest.mark.parametrize(("option", "value"), [("--mesh", "auto"), ("--mesh", "data=x"), ("--slots", "0")])
def test_options_that_cannot_be_used_are_named(monkeypatch: pytest.MonkeyPatch, option: str, value: str) -> None:
    monkeypatch.setattr(plan, "verify_plan", Compiler(DECODE))
    result = CliRunner().invoke(app, ["plan", "random:2b", "--verify", option, value])
    assert result.exit_code == 2
    assert option.removeprefix("--") in result.stderr
    assert len(result.stderr.splitlines()) == 1
