"""Traced programs that are kept: the same bits as without, and nothing stale, torn or foreign is run."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cache_settings import restored
from roost.engine import EngineConfig, ModelRunner, open_model
from roost.engine.devices.platform import CPU, TPU
from roost.engine.model.config import ModelConfig
from roost.engine.worker import earlier_starts
from roost.engine.worker.compilation import compile_lowered, program_memory
from roost.engine.worker.earlier_starts import TraceCache, open_trace_cache
from roost.engine.worker.lowering import lower
from roost.engine.worker.served import Devices, Served, open_weights
from roost.kernels import native
from roost.kernels.matrices import packed

TINY = Path(__file__).parents[2] / "golden" / "tiny-a"
SLOTS = 4
DTYPE = jnp.dtype("float32")
SERVED = Served(ModelConfig(64, 64, 64, 1, 64, ("recurrent",)), EngineConfig(), Devices(CPU), DTYPE, 4)


ARGUMENTS = ([jnp.arange(3.0), jnp.ones((2, 3)), jnp.zeros(2, jnp.int32), jnp.zeros(1)], jnp.float32(2))
SHAPES = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), ARGUMENTS)


class Step:
    """A program that counts how often it is traced; it neither reads nor writes the last array."""

    def __init__(self) -> None:
        self.traced = 0

    def __call__(self, leaves: list[Any], x: Any) -> tuple[list[Any], Any]:
        self.traced += 1
        weights, values, counts, _ = leaves
        return [None, values * weights + x, counts + 1, None], values.sum()

    def run(self, cache: TraceCache, label: str = "step", shapes: Any = SHAPES) -> Any:
        arguments = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes) if shapes is not SHAPES else ARGUMENTS
        traced = cache.traced(label, self, shapes)
        assert (traced.used, traced.is_written) == ({0, 1, 2, 4}, (False, True, True, False))
        return jax.jit(traced.step)(*jax.tree.leaves(arguments))


def test_a_later_start_traces_nothing(tmp_path: Path) -> None:
    first, later = Step(), Step()
    (_, values, *_), total = first.run(TraceCache(tmp_path, SERVED))
    (weights, *written, last), same = later.run(TraceCache(tmp_path, SERVED))
    assert (first.traced, later.traced) == (1, 0)
    assert (*(x.tolist() for x in written), float(same)) == ([[2, 3, 4]] * 2, [1, 1], 6)
    assert (values.tolist(), float(total)) == (written[0].tolist(), 6)
    assert weights is last is None


def _longer(shapes: Any) -> Any:
    leaves, x = shapes
    return [leaves[0], jax.ShapeDtypeStruct((4, 3), DTYPE), *leaves[2:]], x


@pytest.mark.parametrize(
    "changed",
    [
        {"label": "another"},
        {"shapes": _longer(SHAPES)},
        {"shapes": (tuple(SHAPES[0]), SHAPES[1])},
    ],
)
def test_another_program_has_another_file(changed: dict[str, Any], tmp_path: Path) -> None:
    step = Step()
    step.run(TraceCache(tmp_path, SERVED))
    step.run(TraceCache(tmp_path, SERVED), **changed)
    assert step.traced == len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "fact",
    [
        lambda patch: patch.setattr(earlier_starts, "source_fingerprint", lambda: "changed"),
        lambda patch: patch.setattr(earlier_starts, "numerics", lambda: "12345678"),
        lambda patch: patch.setattr("importlib.metadata.version", lambda package: "0"),
        lambda patch: patch.setitem(earlier_starts.__dict__, "_flags", lambda: [("jax_enable_x64", "True")]),
    ],
    ids=["source", "numerics", "versions", "flags"],
)
def test_what_another_start_traced_is_not_run(
    fact: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Step()
    step.run(TraceCache(tmp_path, SERVED))
    fact(monkeypatch)
    step.run(TraceCache(tmp_path, SERVED))
    assert step.traced == 2


def test_another_layout_has_other_files(tmp_path: Path) -> None:
    step = Step()
    step.run(TraceCache(tmp_path, SERVED))
    step.run(TraceCache(tmp_path, SERVED.with_slots(8)))
    assert step.traced == 2


def test_flags_that_change_what_is_traced_are_in_the_key() -> None:
    before = earlier_starts._flags()
    with jax.numpy_dtype_promotion("strict"):
        assert earlier_starts._flags() != before
    with restored():
        jax.config.update("jax_compilation_cache_dir", "/another")
        assert earlier_starts._flags() == before


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:40], lambda content: b""])
def test_a_torn_file_is_written_anew(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    step = Step()
    step.run(TraceCache(tmp_path, SERVED))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert float(step.run(TraceCache(tmp_path, SERVED))[1]) == 6
    assert (step.traced, [path.name for path in tmp_path.iterdir()]) == (2, [file.name])
    step.run(TraceCache(tmp_path, SERVED))
    assert step.traced == 2


def test_a_file_of_another_name_is_written_anew(tmp_path: Path) -> None:
    step, other = Step(), Step()
    step.run(TraceCache(tmp_path, SERVED))
    (file,) = tmp_path.iterdir()
    other.run(TraceCache(tmp_path, SERVED), label="other")
    (foreign,) = set(tmp_path.iterdir()) - {file}
    file.write_bytes(foreign.read_bytes())
    step.run(TraceCache(tmp_path, SERVED))
    assert step.traced == 2


def test_without_a_folder_that_takes_files_everything_is_traced(tmp_path: Path) -> None:
    step = Step()
    for _ in range(2):
        assert float(step.run(TraceCache(tmp_path / "missing", SERVED))[1]) == 6
    assert step.traced == 2


def test_a_full_folder_keeps_no_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fail)
    Step().run(TraceCache(tmp_path, SERVED))
    assert not list(tmp_path.iterdir())


def test_programs_are_kept_in_a_folder_on_cpus() -> None:
    assert open_trace_cache(Path(), SERVED) is not None
    assert open_trace_cache(None, SERVED) is None
    assert open_trace_cache(Path(), replace(SERVED, devices=Devices(TPU))) is None


@pytest.mark.skipif(not native.is_available(), reason=str(native.why_unavailable()))
def test_native_calls_are_kept(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    matrix = random.integers(-127, 128, (32, 64), np.int8)
    arguments = (
        jnp.asarray(random.normal(size=(4, 64)), jnp.bfloat16),
        jnp.asarray(packed.pack(matrix)),
        jnp.asarray(random.uniform(size=32), jnp.float32),
    )

    def step(x: Any, values: Any, scale: Any) -> tuple[list[Any], Any]:
        return [], native.int8_product(x, values, scale, None, DTYPE)

    _, expected = jax.jit(step)(*arguments)
    for _ in range(2):
        _, y = jax.jit(TraceCache(tmp_path, SERVED).traced("product", step, arguments).step)(*arguments)
        assert (y == expected).all()


@pytest.mark.parametrize("label", ["decode 4", "first token"])
def test_served_programs_have_the_bits_and_the_memory_of_direct_ones(label: str, golden_runner: ModelRunner) -> None:
    """The shared runner's programs were traced with a folder; the same without one is compiled here."""
    executor = golden_runner.executor
    settings = EngineConfig(prefill_chunk=128, dtype="float32", request_snapshots=True)
    with open_weights(open_model(str(TINY / "hf")), settings, executor.served.devices) as weights:
        served = weights.served.with_slots(SLOTS)
    (program,) = (each for each in served.programs if each.label == label)
    with restored():
        direct = compile_lowered(lower(program, served), dict(served.devices.platform.compile_options))
    kept: Any = executor.compiled[label]
    assert program_memory(kept) == program_memory(direct)

    def outputs(compiled: Any) -> list[Any]:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(compiled(*_arguments(direct)))]

    for one, other in zip(outputs(kept), outputs(direct), strict=True):
        np.testing.assert_array_equal(one, other)


def _arguments(compiled: Any) -> Any:
    """Returns small random arguments of a compiled program."""
    random = np.random.default_rng(1)

    def draw(info: Any) -> Any:
        kind = np.dtype(info.dtype)
        if kind == np.bool_:
            return jnp.ones(info.shape, kind)
        if np.issubdtype(kind, np.integer):
            return jnp.asarray(random.integers(0, 2, info.shape), kind)
        return jnp.asarray(random.normal(0, 0.1, info.shape), kind)

    return jax.tree.map(draw, compiled.in_avals[0])
