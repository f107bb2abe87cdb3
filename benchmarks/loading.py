"""Measures the host memory of loading and converting a checkpoint, with files of a real model's size.

    python benchmarks/loading.py [--model 2b] [--folder DIR] [--without WORD ...] [--json]

Writes random weights of the model's shape in bfloat16 as an official checkpoint, converts that to safetensors and those
to int8 and int4, and loads each on the CPU, every step in its own process. `peak` is the maximum anonymous memory
(RssAnon, since the system can drop pages of files) above that of the same process with JAX initialised and no file
open; `limit` is 1.15 times the larger of the model in its target precision and its largest tensor in float32. The exit
status is 1 if a peak exceeds its limit. Requires Linux and, for 2B, 20 GB of disk and, since Orbax copies what it
writes, 16 GB of memory; all files are removed at the end.
"""

import argparse
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
import orbax.checkpoint
import orjson
from rich.console import Console
from rich.table import Table
from roost.engine.capacity.roofline import CPU as CPU_DEVICE
from roost.engine.capacity.roofline import compute_roofline, find_device
from roost.engine.checkpoint.conversion import convert
from roost.engine.checkpoint.format import BFLOAT16
from roost.engine.checkpoint.layout import tensor_specs
from roost.engine.checkpoint.official import FIELDS, GRIFFIN_CONFIG
from roost.engine.checkpoint.source import open_model, open_tensors
from roost.engine.devices.platform import CPU
from roost.engine.model.config import PRESETS, ModelConfig
from roost.engine.types.host_memory import HostArray

SAMPLE_S: Final = 0.002


@dataclass(frozen=True)
class Step:
    """Work of a process, its target precision, and whether the limit applies to it."""

    name: str
    run: Callable[[], None]
    dtype: str = "bfloat16"
    quantize: str | None = None
    is_limited: bool = True


@dataclass(frozen=True)
class Measure:
    step: str
    seconds: float
    peak_bytes: int
    limit_bytes: int | None

    @property
    def is_fine(self) -> bool:
        return self.limit_bytes is None or self.peak_bytes <= self.limit_bytes


def write_official(config: ModelConfig, folder: Path) -> None:
    """Writes random weights with Orbax, which makes one chunk of each array."""
    tree: dict[str, Any] = {}
    for spec in tensor_specs(config):
        view = spec.official
        shape = spec.shape if view.turn == "none" else (spec.shape[-1], spec.shape[0])
        *path, name = view.key.replace("blocks.", "blocks/").split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part.replace("/", "."), {})
        if name not in branch:
            branch[name] = drawn((*(2, 1, 1)[: len(view.index)], *shape))
    with orbax.checkpoint.PyTreeCheckpointer() as saver:
        saver.save(folder, tree)
    fields = {name: getattr(config, ours) for name, (ours, _) in FIELDS.items()}
    (folder / GRIFFIN_CONFIG).write_bytes(orjson.dumps(fields))


def drawn(shape: tuple[int, ...]) -> HostArray:
    rng, out = np.random.default_rng(shape), np.empty(shape, BFLOAT16)
    for part in np.array_split(out.reshape(-1), 1 + out.size // 2**22):
        part[:] = 0.04 * (rng.random(part.shape, np.float32) - 0.5)
    return out


def load(folder: Path, dtype: str, quantize: str | None) -> None:
    """Loads weights like the runner does on a CPU."""
    import jax
    import jax.numpy as jnp
    from roost.engine.checkpoint.weights import Checkpoint, load_params
    from roost.engine.model.griffin import abstract_model

    source = open_model(str(folder))
    matrices = None if quantize is None else jnp.dtype(quantize)
    _, abstract = abstract_model(source.config, jnp.dtype(dtype), CPU, matrix_dtype=matrices)
    with open_tensors(source.weights, source.config) as stored:
        jax.block_until_ready(load_params(Checkpoint(source.config, stored), abstract))


def steps(config: ModelConfig, folder: Path) -> Iterator[Step]:
    official, safetensors, int8, int4 = (folder / name for name in ("official", "safetensors", "int8", "int4"))
    yield Step("write official", partial(write_official, config, official), is_limited=False)
    yield Step("convert official to safetensors", partial(convert_to, official, safetensors))
    for quantized in (int8, int4):
        run = partial(convert_to, safetensors, quantized, quantize=quantized.name)
        yield Step(f"convert safetensors to {quantized.name}", run, quantize=quantized.name)
    for path in (official, safetensors):
        for dtype, quantize in (("bfloat16", None), ("bfloat16", "int8"), ("bfloat16", "int4"), ("float32", None)):
            name = f"load {path.name} in {quantize or dtype}"
            yield Step(name, partial(load, path, dtype, quantize), dtype, quantize)
    for quantized in (int8, int4):
        run = partial(load, quantized, "bfloat16", quantized.name)
        yield Step(f"load {quantized.name} in {quantized.name}", run, quantize=quantized.name)


def convert_to(source: Path, destination: Path, **options: Any) -> None:
    convert(open_model(str(source)), destination, **options)


def limit(config: ModelConfig, dtype: str, quantize: str | None) -> int:
    """Returns the memory for loading like `roost plan`, except that gates are float32 on a CPU."""
    sizes = {"float32": 4, "bfloat16": 2}
    roofline = compute_roofline(config, find_device(CPU_DEVICE), sizes[dtype], quantize=quantize)
    gates = 2 * config.block_types.count("recurrent") * config.lru_width**2 // config.num_heads
    return replace(roofline, weight_bytes=roofline.weight_bytes + gates * (4 - sizes[dtype])).loading_bytes


def measure(step: Step, config: ModelConfig) -> Measure:
    """Runs a step in a new process and monitors its memory."""
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_child, args=(step.run, there))
    process.start()
    here.recv()
    bare = peak = anonymous_bytes(process.pid)
    start = time.perf_counter()
    here.send(None)
    while not here.poll():
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(SAMPLE_S)
        if not process.is_alive():
            raise SystemExit(f"{step.name}: failed")
    seconds = time.perf_counter() - start
    here.send(None)
    process.join()
    return Measure(
        step.name, seconds, peak - bare, limit(config, step.dtype, step.quantize) if step.is_limited else None
    )


def _child(run: Callable[[], None], connection: Connection) -> None:
    import jax

    jax.block_until_ready(jax.numpy.zeros(8))
    connection.send(None)
    connection.recv()
    run()
    connection.send(None)
    connection.recv()


def anonymous_bytes(pid: int | None) -> int:
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


@contextmanager
def folder_at(parent: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="roost-loading-", dir=parent) as folder:
        yield Path(folder)


def as_table(measures: Sequence[Measure], title: str) -> Table:
    table = Table(title=title)
    for name in ("step", "seconds", "peak GB", "limit GB", "of limit"):
        table.add_column(name, justify="left" if name == "step" else "right")
    for m in measures:
        most, share = "", ""
        if m.limit_bytes is not None:
            most, share = f"{m.limit_bytes / 1e9:.2f}", f"{m.peak_bytes / m.limit_bytes:.0%}"
        table.add_row(m.step, f"{m.seconds:.0f}", f"{m.peak_bytes / 1e9:.2f}", most, share)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures the host's memory while checkpoints are loaded.")
    parser.add_argument("--model", choices=sorted(PRESETS), default="2b")
    parser.add_argument("--layers", type=int, help="take only so many of them")
    parser.add_argument(
        "--folder", type=Path, help="where files are written, and removed again (default: a temporary one)"
    )
    parser.add_argument(
        "--without", nargs="*", default=[], metavar="WORD", help="leave out steps with a word, as float32"
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON for each step")
    options = parser.parse_args()

    config = PRESETS[options.model]
    if options.layers is not None:
        config = replace(config, block_types=config.block_types[: options.layers])
    measures = []
    with folder_at(options.folder) as folder:
        for step in steps(config, folder):
            if any(word in step.name.split() for word in options.without):
                continue
            measures.append(measure(step, config))
            if options.json:
                print(orjson.dumps(asdict(measures[-1])).decode(), flush=True)
    if not options.json:
        Console().print(as_table(measures, f"{options.model} on the CPU"))
    return 0 if all(m.is_fine for m in measures) else 1


if __name__ == "__main__":
    sys.exit(main())
