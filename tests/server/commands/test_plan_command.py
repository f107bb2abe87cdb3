"""Output of `roost plan` at 80 columns, as in a pipe."""

import json
from pathlib import Path

import pytest
from roost.engine import DEVICES
from roost.server.commands.main import app
from sweeps import full
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


@pytest.mark.parametrize("model", ["random:9b", *full("random:2b")])
def test_the_advice_holds(model: str) -> None:
    """Each proposed setup has the slots that it promises."""
    for line in printed(model, "--device", "v5e", "--dtype", "float32", "--mesh", "data=2").splitlines():
        if line.startswith("  --"):
            option, value, slots, _ = line.split()
            given = {"--device": "v5e", "--dtype": "float32", "--mesh": "data=2"} | {option: value}
            out = printed(model, *(word for pair in given.items() for word in pair))
            assert f" {slots} │" in out
            assert "does not fit" not in out


def test_a_model_that_fits_has_slots() -> None:
    out = printed("random:9b", "--device", "v6e")
    assert " 576 │" in out
    assert "25.0 MiB" in out


def test_a_plan_for_a_mesh() -> None:
    out = printed("random:9b", "--device", "v5e", "--mesh", "data=2,model=4")
    assert "on 2 x 4 v5e, bfloat16" in out
    assert "weights on each chip" in out
    assert "3,328" in out


@pytest.mark.parametrize(("key_heads", "state"), [({"num_key_value_heads": 1}, "2.0 MiB"), ({}, "16.0 MiB")])
def test_a_slot_holds_the_keys_of_all_key_heads(key_heads: dict[str, int], state: str, tmp_path: Path) -> None:
    """Without `num_key_value_heads`, each of eight heads has one."""
    fields = {"model_type": "recurrent_gemma", "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 3072}
    fields |= {"num_hidden_layers": 12, "num_attention_heads": 8, **key_heads}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    line = next(line for line in printed(f"random:{path}", "--device", "v5e").splitlines() if "state of a slot" in line)
    assert line.split()[-3:-1] == state.split()


NGRAM = ("--speculative-config", '{"method": "ngram"}')


def test_with_speculation_a_slot_holds_the_last_tokens_too() -> None:
    sizes = [
        json.loads(runner.invoke(app, ["plan", "demo", "--device", "cpu", "--json", *more]).output)["slot_bytes"]
        for more in ((), NGRAM)
    ]
    assert sizes[1] - sizes[0] == 4 * 4096


@pytest.mark.parametrize("more", [(), ("--verify",)])
def test_chips_draft_no_tokens(more: tuple[str, ...]) -> None:
    result = runner.invoke(app, ["plan", "demo", "--device", "v5e", *NGRAM, *more])
    assert result.exit_code == 2
    assert "works on one CPU device only" in " ".join(result.stderr.split())


def test_limits_are_called_theoretical() -> None:
    out = printed("random:2b", "--device", "a100")
    assert "decode limit, 1 slot " in out
    assert "theoretical" in out
    assert "not measurements" in " ".join(out.split())


def test_requests_per_second_recommend_int8_where_it_ends_more() -> None:
    out = " ".join(printed("random:2b", "--device", "v5e").split())
    assert "512 + 128 tokens, all slots busy │ 55.1 requests/s" in out
    assert "Recommended: --quantize int8 --kv-dtype int8: 1,360 slots, 90.8 requests/s, 1.65 times as many." in out
    int8 = printed("random:2b", "--device", "v5e", "--quantize", "int8", "--kv-dtype", "int8")
    assert "90.8 requests/s" in int8
    assert "Recommended" not in int8
    assert "Recommended" not in printed("random:2b", "--device", "h100"), "GPUs have no kernel for windows in int8"


def test_data_shards_end_requests_side_by_side() -> None:
    one, four = (
        json.loads(runner.invoke(app, ["plan", "random:2b", "--device", "v5e", "--mesh", mesh, "--json"]).output)
        for mesh in ("data=1", "data=4")
    )
    assert four["requests_per_s"]["default"] == pytest.approx(4 * one["requests_per_s"]["default"])
    assert one["recommended"]["options"] == "--quantize int8 --kv-dtype int8"


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
    ("arguments", "message"),
    [
        ("--device V5E", f"--device 'V5E' is not known; give one of {', '.join(DEVICES)} or cpu\n"),
        ("--device cpu --mesh data=2", "--mesh must be data=1,model=1 for device cpu, which is one device"),
        ("--mesh auto", "--mesh must be like \"data=2,model=4\", not 'auto'\n"),
        ("--mesh data=2,rows=4", '--mesh must be auto, or like data=2,model=4, got "data=2,rows=4"\n'),
        ("--quantize int4", "--quantize "),
        ("--dtype float16", "--dtype: 'float16' is not one of 'float32', 'bfloat16'; roost plan --help says"),
    ],
)
def test_a_wrong_value_is_one_line(arguments: str, message: str) -> None:
    result = runner.invoke(app, ["plan", "demo", *arguments.split()])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"roost: {message}")
    assert result.stderr.count("\n") == 1


def test_json_is_one_object_of_what_the_table_shows() -> None:
    found = json.loads(runner.invoke(app, ["plan", "random:2b", "--json"]).stdout)
    assert (found["device"], found["mesh"]) == ("v5e", {"data": 1, "model": 1})
    assert list(found["decode_tokens_per_s"]) == ["1", "32", "128", str(found["slots"])]
    assert f"{found['prefill_tokens_per_s']:,.0f} tokens/s" in printed("random:2b")
    large = json.loads(runner.invoke(app, ["plan", "random:9b", "--json"]).stdout)
    assert (large["slots"], large["decode_tokens_per_s"], large["prefill_tokens_per_s"]) == (0, {}, None)
    assert large["would_fit"][0]["options"] == "--quantize int8"


def test_settings_come_from_the_environment_as_for_other_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_QUANTIZE", "int8")
    assert "bfloat16, quantised to int8" in printed("random:2b")
