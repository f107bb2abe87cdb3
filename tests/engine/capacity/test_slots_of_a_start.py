"""Slots of a start on devices with memory of their own, with programs whose memory is made up."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from roost.engine import ConfigError, EngineConfig, builder, open_model
from roost.engine.capacity.roofline import estimated_slots, memory_of_served
from roost.engine.devices.platform import CPU_MESH, PORTABLE, TPU, Platform
from roost.engine.model.sharding import Collectives
from roost.engine.worker.compilation import CompiledPrograms, KernelRefusedError
from roost.engine.worker.lowering import Leaves
from roost.engine.worker.served import Devices, OpenWeights, Served, open_weights
from roost.kernels import XLA, Backend, backends

TINY = open_model(str(Path(__file__).parents[2] / "golden" / "tiny-a" / "hf"))
LIMIT = 200 * 2**20


type Start = Callable[..., CompiledPrograms]


class Compiled:
    """A compiled program that takes all arrays, and whose temporaries alone take some bytes."""

    def __init__(self, served: Served, temporaries: int) -> None:
        none, every = Leaves((), ()), range(len(jax.tree.leaves((served.params, served.pool))))
        self.in_tree = jax.tree.structure(((Leaves((0,) * len(every), tuple(every)), none), {}))
        self.out_tree = jax.tree.structure((none, None))
        self._temporaries = temporaries

    def memory_analysis(self) -> Any:
        names = ("argument", "output", "alias", "generated_code")
        return SimpleNamespace(**{f"{name}_size_in_bytes": 0 for name in names}, temp_size_in_bytes=self._temporaries)


@pytest.fixture
def weights() -> Iterator[OpenWeights]:
    with open_weights(TINY, EngineConfig(), Devices(PORTABLE)) as weights:
        yield weights


@pytest.fixture
def start(weights: OpenWeights, tmp_path: Path) -> tuple[Start, list[int]]:
    """Returns a function that starts where a slot takes some bytes, and the numbers of slots it compiled for."""
    tried: list[int] = []

    def start(bytes_per_slot: int, slots: int | None = None, platform: Platform = PORTABLE) -> CompiledPrograms:
        settings = EngineConfig(slots, compile_cache=tmp_path)
        served = replace(weights.served, settings=settings, devices=Devices(platform))

        def compile_for(slots: int) -> CompiledPrograms:
            tried.append(slots)
            chosen = served.with_slots(slots)
            compiled = Compiled(chosen, slots * bytes_per_slot)
            return CompiledPrograms(chosen, {each.label: compiled for each in chosen.programs})

        limit = None if platform.uses_host_memory else LIMIT
        return builder._compile_to_fit(weights._replace(served=served), limit, compile_for)

    return start, tried


def test_slots_are_taken_away_until_programs_fit_and_then_known(
    start: tuple[Start, list[int]], weights: OpenWeights, caplog: pytest.LogCaptureFixture
) -> None:
    run, tried = start
    memory = memory_of_served(weights, LIMIT)
    estimate = estimated_slots(memory, Collectives())
    too_large = int(1.02 * LIMIT / estimate)
    slots = run(too_large).served.slots
    assert tried == [estimate, slots]
    assert slots * too_large <= LIMIT
    (record,) = caplog.records
    assert record.getMessage() == (f"programs for {estimate} slots need more memory than a device has; serving {slots}")
    tried.clear()
    assert run(too_large).served.slots == slots
    assert tried == [slots], "the second start begins with the number of the first"


def test_slots_of_the_config_are_kept_or_refused(start: tuple[Start, list[int]]) -> None:
    run, tried = start
    assert run(LIMIT // 64, 64).served.slots == 64
    with pytest.raises(ConfigError, match=r"slots=128 needs 400\.0 MiB on .*, which has 200\.0 MiB; set fewer"):
        run(LIMIT // 64, 128)
    assert tried == [64, 128]


def test_the_memory_of_the_host_is_not_compared(start: tuple[Start, list[int]]) -> None:
    """A CPU's slots come from the host's free memory, whatever its programs take."""
    run, tried = start
    cpu = replace(CPU_MESH, max_slots=12)
    assert run(LIMIT, platform=cpu).served.slots == 12
    assert tried == [12]


def test_xla_takes_the_place_of_kernels_that_do_not_compile(caplog: pytest.LogCaptureFixture) -> None:
    """The MLP's refusal shows only once the sampler no longer hides it; the other kernels stay."""
    refused = {"sample": "Used 24.56M of 16.00M vmem", "gated_mlp": "Used 20.88M of 16.00M vmem"}
    tried: list[Platform] = []

    def load(devices: Devices) -> str:
        tried.append(devices.platform)
        for kernel, reason in refused.items():
            if kernel in devices.platform.kernels.names:
                raise KernelRefusedError({kernel: reason})
        return "loaded"

    assert builder._with_kernels_or_xla(Devices(TPU), load) == "loaded"
    assert [each.kernels for each in tried] == [
        backends.TPU,
        backends.TPU.without(["sample"]),
        backends.TPU.without(["sample", "gated_mlp"]),
    ]
    assert [each.logits_per_row for each in tried] == [0.95, 4.0, 4.0], "XLA's sampler takes more memory"
    assert "kernel gated_mlp: Used 20.88M of 16.00M vmem; XLA computes in their place" in caplog.text


def test_xla_takes_the_place_of_all_kernels_if_the_compiler_names_none() -> None:
    tried: list[Backend] = []

    def load(devices: Devices) -> str:
        tried.append(devices.platform.kernels)
        raise KernelRefusedError({"": "Mosaic failed to compile TPU kernel"})

    with pytest.raises(KernelRefusedError, match="a kernel: Mosaic failed"):
        builder._with_kernels_or_xla(Devices(TPU), load)
    assert tried == [backends.TPU, XLA]
