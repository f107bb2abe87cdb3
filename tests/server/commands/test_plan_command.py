"""Output of `roost plan` at 80 columns, as in a pipe."""

import pytest
from roost.server.commands.main import app
from typer.testing import CliRunner

runner = CliRunner()


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def printed(*arguments: str) -> str:
    result = runner.invoke(app, ["plan", *arguments])
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.output.splitlines())) <= 80
    return result.output


def test_a_model_that_does_not_fit_gets_advice() -> None:
    lines = printed("random:9b", "--device", "v5e").splitlines()
    assert "It does not fit. What would:" in lines
    advice = [line.split()[:2] for line in lines if line.startswith("  --")]
    assert advice == [
        ["--quantize", "int8"],
        ["--mesh", "model=2"],
        ["--device", "l4"],
        ["--device", "rtx4090"],
        ["--device", "v4"],
    ]


@pytest.mark.parametrize("model", ["random:2b", "random:9b"])
def test_the_advice_holds(model: str) -> None:
    """Each proposed setup has the slots that it promises."""
    for line in printed(model, "--device", "v5e", "--dtype", "float32", "--mesh", "data=2").splitlines():
        if line.startswith("  --"):
            option, value, slots, _ = line.split()
            given = {"--device": "v5e", "--dtype": "float32", "--mesh": "data=2"} | {option: value}
            out = printed(model, *(word for pair in given.items() for word in pair))
            assert f" {slots} │" in out
            assert "does not fit" not in out


def test_a_plan_for_a_mesh() -> None:
    out = printed("random:9b", "--device", "v5e", "--mesh", "data=2,model=4")
    assert "on 2 x 4 v5e, bfloat16" in out
    assert "weights on each chip" in out
    assert "3,328" in out


def test_limits_are_called_theoretical() -> None:
    out = printed("random:2b", "--device", "a100")
    assert "decode limit, 1 slot " in out
    assert "theoretical" in out
    assert "not measurements" in " ".join(out.split())


def test_small_models_have_small_units() -> None:
    out = printed("demo", "--device", "l4")
    assert " 0.00" not in out
    assert " 0.0 " not in out
    assert "55.5 KiB" in out


def test_this_machine_has_no_datasheet() -> None:
    out = printed("demo", "--device", "cpu")
    assert "this machine's CPU" in out
    assert "tokens/s" not in out
    assert "available now" in out


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("--device", "V5E"), "device"),
        (("--device", ""), "device"),
        (("--device", "cpu", "--mesh", "data=2"), "mesh"),
        (("--mesh", "model=0"), "mesh"),
        (("--quantize", "int4"), "quantize"),
        (("--dtype", "float16"), "dtype"),
    ],
)
def test_an_unknown_value_is_one_line(arguments: tuple[str, ...], field: str) -> None:
    result = runner.invoke(app, ["plan", "demo", *arguments])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"roost: {field} ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("mesh", ["auto", "data=2,rows=4"])
def test_a_mesh_must_be_numbers(mesh: str) -> None:
    result = runner.invoke(app, ["plan", "random:9b", "--mesh", mesh])
    assert result.exit_code == 1
    assert result.stderr == f"roost: mesh must be like \"data=2,model=4\", not '{mesh}'\n"


def test_an_unknown_device_names_those_that_are_known() -> None:
    result = runner.invoke(app, ["plan", "random:9b", "--device", "v99"])
    assert result.exit_code == 1
    known = "v4, v5e, v5p, v6e, a100, a100-40gb, h100, h200, l4, l40s, a6000, rtx4090 or cpu"
    assert result.stderr == f"roost: device 'v99' is not known; give one of {known}\n"
