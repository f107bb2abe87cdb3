"""An engine on a simulated device: the real scheduler and prefix cache, and states that are never taken for real."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from roost.engine import (
    ConfigError,
    EngineConfig,
    EngineCore,
    MeshShape,
    Request,
    SamplingParams,
    SavedStateFormat,
    Simulation,
    StateFileError,
    TokenOutput,
    load_engine,
    open_model,
)
from roost.engine.simulation import SimulatedDevice

FAST = Simulation.parse("step_ms=0.01,prefill_tokens_per_s=1e9")
PROMPT = tuple(range(7, 207))


def engine(**settings: object) -> EngineCore:
    return load_engine(open_model("demo"), EngineConfig(slots=4, simulate=FAST, **settings))  # type: ignore[arg-type]


def request(id: str = "a", prompt: Sequence[int] = PROMPT, max_tokens: int = 12, **fields: object) -> Request:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    return replace(Request(id, tuple(prompt), params), **fields)  # type: ignore[arg-type]


def outputs_of(core: EngineCore, *requests: Request) -> dict[str, list[TokenOutput]]:
    """Runs requests to their ends."""
    outputs: dict[str, list[TokenOutput]] = {each.id: [] for each in requests}
    for each in requests:
        core.add(each)
    while not core.is_idle:
        for request_id, output in core.step():
            outputs[request_id].append(output)
    return outputs


def tokens_of(outputs: Sequence[TokenOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def test_tokens_depend_neither_on_neighbours_nor_on_the_prefix_cache() -> None:
    core = engine()
    alone = tokens_of(outputs_of(core, request())["a"])
    assert len(alone) == 12
    others = [request(name, (*PROMPT, number)) for number, name in enumerate("bcdef")]
    crowd = outputs_of(core, *others, request())
    assert crowd["a"][0].num_cached == len(PROMPT)
    assert tokens_of(crowd["a"]) == alone
    assert tokens_of(crowd["b"]) != alone
    assert tokens_of(outputs_of(engine(), request())["a"]) == alone


def test_forks_and_log_probabilities_have_their_shapes() -> None:
    params = SamplingParams(max_tokens=3, logprobs=2, prompt_logprobs=1, logprob_token_ids=(9,), seed=1)
    forked = SamplingParams(max_tokens=3, seed=2)
    found = outputs_of(
        engine(), Request("a", PROMPT, params), Request("b", PROMPT, forked, fork_of="a"), Request("c", PROMPT, forked)
    )
    first = found["a"][0]
    assert first.prompt_logprobs is not None
    assert len(first.prompt_logprobs) == len(PROMPT)
    entries = [entry for output in found["a"] for entry in output.logprobs or ()]
    assert [len(entry.top) for entry in entries] == [2, 2, 2]
    assert [entry.top[0][0] for entry in entries] == tokens_of(found["a"])
    assert entries[0].named == ((9, -1.0),)
    assert tokens_of(found["b"]) == tokens_of(found["c"]) != tokens_of(found["a"])


def test_a_rate_counts_the_blocks_of_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: list[float] = []
    dispatch = SimulatedDevice.dispatch

    def record(device: SimulatedDevice, duration: float) -> float:
        seconds.append(duration)
        return dispatch(device, 0.0)

    monkeypatch.setattr(SimulatedDevice, "dispatch", record)
    slow = Simulation.parse("step_ms=1,prefill_tokens_per_s=64")
    core = load_engine(open_model("demo"), EngineConfig(slots=4, simulate=slow))
    outputs_of(core, request(prompt=PROMPT[:70], max_tokens=1))
    assert sum(seconds) == pytest.approx(2.0)


def test_snapshots_count_their_true_size_and_take_none() -> None:
    core = engine()
    outputs_of(core, request())
    saved, formats = core.save("a"), core.state_format
    assert formats is not None
    assert saved.snapshot is not None
    assert (saved.snapshot.recurrent[0].shape, saved.snapshot.recurrent[0].dtype.name) == formats.snapshot.recurrent[
        "h"
    ]
    assert set(saved.snapshot.recurrent[0].strides) == {0}
    blocks = len(PROMPT) // 64 + 1
    recurrent = sum(array.nbytes for array in saved.snapshot.recurrent)
    assert core.stats.cache.num_bytes >= blocks * recurrent


def test_a_simulated_state_is_refused_by_the_model_and_read_by_another_simulation() -> None:
    core = engine()
    outputs_of(core, request())
    formats, other = core.state_format, engine().state_format
    assert formats is not None
    assert other is not None
    file = formats.export(core.save("a"))
    assert other.load(file).snapshot is not None
    real = SavedStateFormat(formats.model.removeprefix("simulated-"), formats.vocab_size, formats.snapshot)
    with pytest.raises(StateFileError, match="another model"):
        real.load(file)


def test_a_folder_of_snapshots_serves_later_simulations(tmp_path: Path) -> None:
    core = engine(state_cache_dir=tmp_path)
    outputs_of(core, request())
    core.close()
    names = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert names
    assert all("simulated" in name for name in names)
    again = engine(state_cache_dir=tmp_path)
    assert outputs_of(again, request())["a"][0].num_cached == len(PROMPT)


def test_a_checkpoint_goes_on_in_another_engine() -> None:
    core = engine(request_snapshots=True)
    core.add(request(max_tokens=30))
    while len(core.step()) != 1:
        pass
    for _ in range(8):
        core.step()
    checkpoint = core.snapshot_request("a")
    assert checkpoint.snapshot.length == len(PROMPT) + checkpoint.num_tokens - 1
    assert sum(len(block) for block in checkpoint.snapshot.window) == min(
        checkpoint.snapshot.length, core.state_format.snapshot.window if core.state_format else 0
    )


def test_slots_are_those_that_fit_the_device() -> None:
    core = load_engine(open_model("random:2b"), EngineConfig(simulate=Simulation.parse("v5e"), state_cache_gib=1.0))
    assert core.stats.slots == 608
    with pytest.raises(ConfigError, match="simulate: v5e has 14"):
        load_engine(open_model("random:9b"), EngineConfig(simulate=Simulation.parse("v5e")))


def test_a_mesh_is_simulated_too() -> None:
    core = engine(shards=MeshShape(data=2))
    found = outputs_of(core, *(request(name, (*PROMPT, ord(name))) for name in "abcdef"))
    alone = outputs_of(engine(), request("a", (*PROMPT, ord("a"))))
    assert tokens_of(found["a"]) == tokens_of(alone["a"])
    assert np.all([len(tokens_of(each)) == 12 for each in found.values()])
