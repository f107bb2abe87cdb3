"""Checks and times every kernel on this machine.

    python benchmarks/kernels.py [--backend xla|gpu|tpu] [--only NAME ...] [--json]

The default backend is that of the machine. Each kernel is first compared with its float64 reference at a small shape,
with idle, fresh, continued and padded rows, in float32 and bfloat16. A wrong kernel is reported, is not timed, and
makes the exit status 1. It is then timed at the shapes of RecurrentGemma 2B (on a CPU with fewer rows and steps), with
full windows, next to XLA's version; the RG-LRU also next to JAX's other formulations of a linear recurrence. Rounds
alternate between them, and each time is the median over rounds. Bytes are those that must move: each input and output
once. A state that a kernel updates in place is copied before every call, which its time includes.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orjson
from rich.console import Console
from rich.table import Table
from roost.engine.devices.platform import gpu_sizes
from roost.kernels.backend import Backend
from roost.kernels.backends import BACKENDS, gpu_backend
from roost.kernels.products.pallas_tpu import gated_mlp_tpu
from roost.kernels.recurrent_block import RecurrentWeights, recurrent_block
from roost.kernels.recurrent_block.xla import causal_conv1d, decay_and_input, rg_lru, rg_lru_sequential
from roost.kernels.references import (
    causal_conv1d_reference,
    gated_mlp_reference,
    recurrent_block_reference,
    rg_lru_reference,
    window_attention_reference,
)
from roost.kernels.window_attention import decode_attention, prefill_attention

MACHINES = {"cpu": "xla", "gpu": "gpu", "tpu": "tpu"}
TOLERANCE = {"float32": 2e-4, "bfloat16": 4e-2}
ROUNDS, ROUND_SECONDS = 9, 0.1
TAPS = 4
QUERY_BLOCK = 64

type Arrays = tuple[np.ndarray, ...]
type Function = Callable[..., Any]


@dataclass(frozen=True)
class Shape:
    """B rows, T steps, N heads or gate blocks of d channels each, and the window."""

    rows: int
    steps: int
    heads: int = 10
    size: int = 256
    window: int = 2048

    @property
    def width(self) -> int:
        return self.heads * self.size

    def __str__(self) -> str:
        return f"{self.rows} x {self.steps}"


SMALL = Shape(rows=5, steps=64, heads=2, size=128, window=48)


class Kernel(NamedTuple):
    """Calls, checks and costs of one kernel."""

    draw: Callable[[np.random.Generator, Shape, Any], Arrays]
    """Arguments without the positions, which come last."""
    reference: Function
    """Reference in float64; returns a list of outputs, the first of them `[B, T, ...]`."""
    on: Callable[[str], dict[str, Function]]
    """Implementations by backend: first the kernel, with outputs like the reference's."""
    one_step: bool = False
    more_bytes: Callable[[Shape], int] = lambda shape: 0
    """Bytes that must move besides arguments and outputs."""


class Measure(NamedTuple):
    """One way to compute a kernel: its error, and its time if the error is small enough."""

    kernel: str
    way: str
    shape: str
    dtype: str
    error: float
    right: bool
    milliseconds: float | None = None
    megabytes: float | None = None
    gigabytes_per_second: float | None = None


# --- the RG-LRU and its formulations


def draw_scan(rng: np.random.Generator, shape: Shape, dtype: Any) -> Arrays:
    x, input_gate, recurrence_gate = rng.standard_normal((3, shape.rows, shape.steps, shape.width), np.float32)
    log_decay = -np.exp(rng.standard_normal(shape.width, np.float32) - 2)
    return x, input_gate, recurrence_gate, log_decay, rng.standard_normal((shape.rows, shape.width), np.float32)


def unrolled(a: jax.Array, b: jax.Array, h0: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
    """RG-LRU as `lax.scan` over time, with several steps per iteration."""

    def step(h: jax.Array, ab: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        h = ab[0] * h + ab[1]
        return h, h

    last, y = jax.lax.scan(step, h0, (jnp.moveaxis(a, 1, 0), jnp.moveaxis(b, 1, 0)), unroll=steps)
    return jnp.moveaxis(y, 0, 1), last


def compose(first: tuple[jax.Array, jax.Array], then: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    return first[0] * then[0], then[0] * first[1] + then[1]


def associative(a: jax.Array, b: jax.Array, h0: jax.Array) -> tuple[jax.Array, jax.Array]:
    """RG-LRU as `lax.associative_scan`: more work in fewer dependent steps."""
    decay, own = jax.lax.associative_scan(compose, (a, b), axis=1)
    y = decay * h0[:, None] + own
    return y, y[:, -1]


def chunked(a: jax.Array, b: jax.Array, h0: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """RG-LRU of all chunks in parallel, each from zero, with the contribution of preceding chunks added afterwards."""
    rows, steps, width = a.shape
    a, b = (v.reshape(rows * steps // chunk, chunk, width) for v in (a, b))
    own, _ = unrolled(a, b, jnp.zeros_like(b[:, 0]), 1)
    decay, _ = unrolled(a, jnp.zeros_like(b), jnp.ones_like(b[:, 0]), 1)
    own, decay = (v.reshape(rows, -1, chunk, width) for v in (own, decay))
    ends, _ = unrolled(decay[:, :, -1], own[:, :, -1], h0, 1)
    starts = jnp.concatenate([h0[:, None], ends[:, :-1]], axis=1)
    y = (decay * starts[:, :, None] + own).reshape(rows, steps, width)
    return y, y[:, -1]


FORMULATIONS: dict[str, Function] = {
    "lax.scan, unroll 8": partial(unrolled, steps=8),
    "associative_scan": associative,
    "chunks of 64": partial(chunked, chunk=64),
}


def scans(backend: str) -> dict[str, Function]:
    def formulation(scan: Function, *arguments: jax.Array) -> Any:
        *gates, h0, positions = arguments
        return scan(*decay_and_input(*gates, positions), h0)

    others = {name: partial(formulation, scan) for name, scan in FORMULATIONS.items()}
    return ways(backend, rg_lru) | others


def ways(backend: str, function: Function) -> dict[str, Function]:
    """Returns a function on its backend and, if that is another one, on XLA."""
    return {name: partial(function, backend=backend_named(name)) for name in dict.fromkeys((backend, "xla"))}


def backend_named(name: str) -> Backend:
    """Returns a backend's kernels, for a GPU those that a server on this machine uses."""
    return gpu_backend(gpu_sizes(jax.local_devices()[0])) if name == "gpu" else BACKENDS[name]


def gradient(function: Function, *arguments: jax.Array) -> Any:
    """Gradient of the sum of all outputs of tokens and of the last states, by all arguments."""
    *inputs, positions = arguments

    def total(*inputs: jax.Array) -> jax.Array:
        y, last = function(*inputs, positions)
        return jnp.sum(jnp.where((positions >= 0)[..., None], y, 0.0)) + jnp.sum(last)

    return jax.grad(total, argnums=tuple(range(len(inputs))))(*inputs)


def gradient_reference(*arguments: np.ndarray) -> list[np.ndarray]:
    """JAX's own gradient of the plain loop in float64."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = [jnp.asarray(v, jnp.float64) for v in arguments[:-1]]
        return [np.asarray(v) for v in gradient(rg_lru_sequential, *wide, jnp.asarray(arguments[-1]))]


# --- attention and the convolution


def draw_attention(rng: np.random.Generator, shape: Shape, dtype: Any) -> Arrays:
    rows, steps, heads, size = shape.rows, shape.steps, shape.heads, shape.size
    q = rng.standard_normal((rows, steps, heads, size), np.float32)
    k, v = rng.standard_normal((2, rows, steps, size), np.float32)
    ring_k, ring_v = rng.standard_normal((2, rows, shape.window, size), np.float32)
    return tuple(x.astype(dtype) for x in (q, k, v, ring_k, ring_v))


def attend_reference(*arguments: np.ndarray) -> list[np.ndarray]:
    return [window_attention_reference(*arguments)[0]]


def decode(q: Any, k: Any, v: Any, ring_k: Any, ring_v: Any, positions: Any, backend: Any) -> Any:
    rings = ring_k, ring_v
    out, _ = decode_attention(q[:, 0], k[:, 0], v[:, 0], rings, positions[:, 0], backend)
    return [out[:, None]]


def prefill(q: Any, k: Any, v: Any, ring_k: Any, ring_v: Any, positions: Any, backend: Any) -> Any:
    out, _ = prefill_attention(q, k, v, (ring_k, ring_v), positions, QUERY_BLOCK, backend)
    return [out]


def draw_conv(rng: np.random.Generator, shape: Shape, dtype: Any) -> Arrays:
    x = rng.standard_normal((shape.rows, shape.steps, shape.width), np.float32)
    weight, bias = np.split(rng.standard_normal((TAPS + 1, shape.width), np.float32), [TAPS])
    state = rng.standard_normal((TAPS - 1, shape.rows, shape.width), np.float32)
    return x.astype(dtype), weight, bias[0], state.astype(dtype)


# --- the recurrent block and the MLP


def draw_block(rng: np.random.Generator, shape: Shape, dtype: Any) -> Arrays:
    x, conv_weight, conv_bias, conv = draw_conv(rng, shape, dtype)
    a_param = 2 * rng.standard_normal(shape.width, np.float32) - 4
    h = rng.standard_normal((shape.rows, shape.width), np.float32)
    xy = np.concatenate([x, x], axis=-1)
    weight = rng.standard_normal((shape.heads, shape.size, 2 * shape.size), np.float32) / np.sqrt(shape.size)
    bias = np.zeros((shape.heads, 2 * shape.size), np.float32)
    return xy, conv_weight, conv_bias, weight.astype(dtype), bias, a_param, conv, h


def block_reference(*arguments: np.ndarray) -> list[np.ndarray]:
    out, _, h = recurrent_block_reference(*arguments)
    return [out, h]


def block(xy: Any, *arguments: Any, backend: Backend) -> Any:
    *weights, gate_weight, gate_bias, a_param, conv, h, positions = arguments
    if jax.default_backend() == "cpu":
        gate_weight = gate_weight.astype(jnp.float32)  # XLA for CPUs has only float32
    weights = RecurrentWeights(*weights, gate_weight, gate_bias, a_param)
    found = recurrent_block(lambda dtype: xy, weights, conv, h, positions, QUERY_BLOCK, 1, backend)
    return [found.mixed.reshape(*positions.shape, -1), found.h]


def draw_mlp(rng: np.random.Generator, shape: Shape, dtype: Any) -> Arrays:
    width, hidden = shape.width, 3 * shape.width
    x = rng.standard_normal((shape.rows, 1, width), np.float32).astype(dtype)
    gate_up = (rng.standard_normal((2 * hidden, width), np.float32) / np.sqrt(width)).astype(dtype)
    down = (rng.standard_normal((width, hidden), np.float32) / np.sqrt(hidden)).astype(dtype)
    return x, gate_up, np.zeros(2 * hidden, np.float32), down, np.zeros(width, np.float32)


def mlp_reference(x: np.ndarray, *weights: np.ndarray) -> list[np.ndarray]:
    return [gated_mlp_reference(x[:, 0], *weights[:-1])[:, None]]


def mlp(x: Any, *weights: Any) -> Any:
    return [gated_mlp_tpu(x[:, 0], *weights[:-1])[:, None]]


def on_tpus(function: Function) -> Callable[[str], dict[str, Function]]:
    return lambda backend: {"tpu": function} if backend == "tpu" else {}


KERNELS = {
    "rg_lru": Kernel(draw_scan, lambda *a: list(rg_lru_reference(*a)), scans),
    "rg_lru gradient": Kernel(
        draw_scan,
        gradient_reference,
        lambda backend: {"xla": partial(gradient, rg_lru)},
        more_bytes=lambda shape: 2 * 4 * shape.rows * shape.steps * shape.width,  # dy, and h of every step
    ),
    "decode attention": Kernel(draw_attention, attend_reference, lambda backend: ways(backend, decode), one_step=True),
    "prefill attention": Kernel(draw_attention, attend_reference, lambda backend: ways(backend, prefill)),
    "causal_conv1d": Kernel(
        draw_conv, lambda *a: list(causal_conv1d_reference(*a)), lambda backend: {"xla": causal_conv1d}
    ),
    "recurrent step": Kernel(draw_block, block_reference, lambda backend: ways(backend, block), one_step=True),
    "recurrent chunk": Kernel(draw_block, block_reference, lambda backend: ways(backend, block)),
    "gated_mlp": Kernel(draw_mlp, mlp_reference, on_tpus(mlp), one_step=True),
}


# --- checking and timing


def draw_positions(rng: np.random.Generator, shape: Shape, mixed: bool) -> np.ndarray:
    """Returns positions behind a full window, or a mixture of idle, fresh and continued rows with padding."""
    positions = 2 * shape.window + np.tile(np.arange(shape.steps, dtype=np.int32), (shape.rows, 1))
    if mixed:
        starts = rng.permutation([0, 0, 7, shape.window, 3 * shape.window])
        positions += (starts - 2 * shape.window)[:, None].astype(np.int32)
        positions[np.arange(shape.steps) >= rng.integers(1, shape.steps + 1, (shape.rows, 1))] = -1
        positions[rng.integers(shape.rows)] = -1
    return positions


def error_of(kernel: Kernel, way: Function, dtype: str) -> float:
    """Returns the maximum error of tokens' outputs, relative where the reference is above 1."""
    rng = np.random.default_rng(0)
    shape = replace(SMALL, steps=1) if kernel.one_step else SMALL
    arguments = (*kernel.draw(rng, shape, jnp.dtype(dtype)), draw_positions(rng, shape, mixed=True))
    expected = kernel.reference(*(v.astype(np.float32) if v.dtype == jnp.bfloat16 else v for v in arguments))
    actual = [np.asarray(v, np.float64) for v in jax.jit(way)(*arguments)]
    valid = arguments[-1] >= 0
    pairs = [(actual[0][valid], expected[0][valid]), *zip(actual[1:], expected[1:], strict=True)]
    return max(float(np.max(np.abs(one - other) / (1 + np.abs(other)))) for one, other in pairs)


def medians(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Returns the seconds of each, from rounds that alternate between them."""
    counts: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():
        jax.block_until_ready(run())
        counts[name] = max(1, int(ROUND_SECONDS / elapsed(run, 2)))
    for _ in range(ROUNDS):
        for name, run in runs.items():
            seconds[name].append(elapsed(run, counts[name]))
    return {name: statistics.median(times) for name, times in seconds.items()}


def elapsed(run: Callable[[], Any], times: int) -> float:
    """Returns the seconds of one of several calls, which a device may queue."""
    start = time.perf_counter()
    for _ in range(times - 1):
        run()
    jax.block_until_ready(run())
    return (time.perf_counter() - start) / times


def measure(name: str, backend: str, dtype: str, shape: Shape) -> Iterator[Measure]:
    """Returns every way to compute a kernel."""
    kernel, rng = KERNELS[name], np.random.default_rng(1)
    candidates = kernel.on(backend)
    errors = {way: error_of(kernel, function, dtype) for way, function in candidates.items()}
    arguments = jax.device_put((*kernel.draw(rng, shape, jnp.dtype(dtype)), draw_positions(rng, shape, mixed=False)))
    right = {way: jax.jit(candidates[way]) for way, error in errors.items() if error <= TOLERANCE[dtype]}
    seconds = medians({way: partial(function, *arguments) for way, function in right.items()})
    for way, error in errors.items():
        found = Measure(name, way, str(shape), dtype, error, way in right)
        if way in right:
            outputs = jax.eval_shape(candidates[way], *arguments)
            moved = sum(v.size * v.dtype.itemsize for v in jax.tree.leaves((arguments, outputs)))
            moved += kernel.more_bytes(shape)
            found = found._replace(
                milliseconds=1e3 * seconds[way],
                megabytes=moved / 1e6,
                gigabytes_per_second=moved / 1e9 / seconds[way],
            )
        yield found


def measure_all(backend: str, names: list[str], on_cpu: bool) -> Iterator[Measure]:
    few, many = (Shape(8, 1), Shape(1, 512)) if on_cpu else (Shape(64, 1), Shape(1, 2048))
    for name in names:
        kernel = KERNELS[name]
        dtypes = ["float32"] if kernel.draw is draw_scan else ["float32", "bfloat16"]
        for dtype in dtypes:
            yield from measure(name, backend, dtype, few if kernel.one_step else many)


def as_table(measures: list[Measure], title: str) -> Table:
    table = Table(title=title)
    for name in ("kernel", "way", "rows x steps", "type", "error", "ms", "MB", "GB/s"):
        table.add_column(name, justify="left" if name in ("kernel", "way", "type") else "right")
    for m in measures:
        speed = ["WRONG", "", ""]
        if m.milliseconds is not None:
            speed = [f"{m.milliseconds:.3f}", f"{m.megabytes:.1f}", f"{m.gigabytes_per_second:.1f}"]
        table.add_row(m.kernel, m.way, m.shape, m.dtype, f"{m.error:.1e}", *speed)
    return table


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--backend", choices=sorted(set(MACHINES.values()) | {"xla"}))
    arguments.add_argument("--only", nargs="*", choices=KERNELS, default=list(KERNELS))
    arguments.add_argument("--json", action="store_true", help="one line for each way to compute a kernel")
    options = arguments.parse_args()
    machine = jax.default_backend()
    backend = options.backend or MACHINES[machine]
    if backend not in ("xla", MACHINES[machine]):
        arguments.error(f"this machine is a {machine}: it cannot run kernels for a {backend}")
    where = {"backend": backend, "device": jax.devices()[0].device_kind, "jax": jax.__version__}
    measures = []
    for found in measure_all(backend, options.only, machine == "cpu"):
        measures.append(found)
        if options.json:
            print(orjson.dumps(found._asdict() | where).decode(), flush=True)
        else:
            print(f"{found.kernel}, {found.way}, {found.dtype}: done", file=sys.stderr)
    if not options.json:
        Console(width=120).print(as_table(measures, "{backend} on {device}, jax {jax}".format(**where)))
    return 0 if all(found.right for found in measures) else 1


if __name__ == "__main__":
    sys.exit(main())
