"""Output of `roost plan --load`, as text and as JSON, and its errors."""

import orjson
import pytest
from roost.server.commands.main import app
from typer.testing import CliRunner

runner = CliRunner()

LOAD = ("random:2b", "--slots", "4", "--load", "512+128@20/s")


def printed(*arguments: str) -> str:
    result = runner.invoke(app, ["plan", *arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_json_and_the_table_are_one_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = orjson.loads(printed(*LOAD, "--itl-p99", "60ms", "--json"))
    assert found["loads"] == ["512+128@20/s"]
    assert found["replicas"] == found["chips"] == -(-20 // found["requests_per_s"])
    assert found["replicas_with_spare"] == found["replicas"] + 1
    assert found["autoscaling"] == {"minReplicas": found["replicas"] + 1, "waitingPerReplica": 1}
    assert found["step_error"] == 1.3
    assert found["replicas"] < found["replicas_if_slower"] <= 2 * found["replicas"]
    assert (found["slots"], found["settings"]) == (4, {"itl_target_ms": 60.0})
    assert 0 < found["ttft_p99_s"] <= 1.0
    assert 0 < found["itl_p99_s"] <= 0.06
    assert (found["model_error"], found["step_times"]) == (0.03, "compiled, not run")
    text = printed(*LOAD, "--itl-p99", "60ms")
    assert max(map(len, text.splitlines())) <= 80
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in text.splitlines() if line.startswith("│")]
    shown = dict(rows)
    assert shown["requests/s of a replica within the targets"] == f"{found['requests_per_s']:.3g}"
    assert shown["replicas"] == str(found["replicas"])
    assert shown["if steps take 1.3 times as long"] == str(found["replicas_if_slower"])
    assert shown["replicas with a spare (N+1)"] == str(found["replicas"] + 1)
    assert shown["autoscaling.minReplicas"] == str(found["replicas"] + 1)
    assert shown["autoscaling.slotsUsedPerReplica, of 4"] == str(found["slots_used_per_replica"])
    assert shown["settings.itl_target_ms"] == "60"
    assert "within 3%" in text
    assert "compiled, not run" in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--load", "512"), "--load must be IN+OUT@RATE/s, such as 512+128@40/s, not '512'"),
        (("--ttft-p99", "1"), "--ttft-p99 must be a time such as 1s or 60ms, not '1'"),
        (("--itl-p99", "60"), "--itl-p99 must be a time such as 1s or 60ms, not '60'"),
        (("--itl-p99", "5ms"), "--ttft-p99 and itl-p99 are kept at no rate of this load"),
        (("--device", "cpu"), "--device must be a chip with a datasheet for --load, not cpu"),
        (("--mesh", "data=2"), "--mesh must have data=1 for --load: each data shard takes the load of a replica"),
        (("--slots", "9999"), "--slots must be at most 608, which fit, not 9,999"),
        (("--slots", "0"), "--slots must be at least 1, got 0"),
        (("--verify",), "--verify and --load: give one of them"),
        (("--dtype", "float32", "--device", "v9"), "--device 'v9' is not known"),
    ],
)
def test_a_wrong_value_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = runner.invoke(app, ["plan", *LOAD, *arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"roost: {message}")
    assert result.stderr.count("\n") == 1


def test_a_model_that_does_not_fit_has_no_plan() -> None:
    result = runner.invoke(app, ["plan", "random:9b", *LOAD[1:]])
    assert result.stderr == "roost: --device v5e has no room for the model; see roost plan without --load\n"
