"""Lets sequences grow, and reports speed and memory at every doubling of their length.

    python benchmarks/growth.py MODEL [--concurrency 8] [--max-length 16384] [--json FILE]

Settings of the engine are given as to `roost bench engine`. Ctrl-C prints the measurements so far.
"""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Final

import typer
from rich.console import Group
from roost.engine import EngineCore, Request, device_facts
from roost.server.commands.bench.engine import Clock, load, make_request, model_facts, settings_as_json
from roost.server.commands.bench.report import (
    Advance,
    check_json_file,
    interruption,
    make_table,
    number,
    opening,
    progress_bar,
    resident_bytes,
    shown_rate,
    titled,
    write_report,
)
from roost.server.commands.bench.workload import draw_token_ids
from roost.server.commands.options import JsonFile
from roost.server.model_hub import find_model
from roost.server.settings import load_settings
from roost.server.terminal.exits import INTERRUPTED_STATUS
from roost.server.terminal.options import takes_options

_FIRST: Final = 128
"""Generated tokens at the end of the first stretch. The length doubles with each further stretch."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Growth of all sequences from one length to the next.

    Attributes:
      length: Minimum number of generated tokens of a sequence at the end; sequences that were prefilled first have a
        few more.
      tokens: Number of tokens that all sequences generated.
      seconds: Duration.
      resident_bytes: Memory of the process at the end.
      device_bytes: Memory of the device at the end; None if the device has no separate memory.
    """

    length: int
    tokens: int
    seconds: float
    resident_bytes: int
    device_bytes: int | None

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of all sequences."""
        return self.tokens / self.seconds


def ends_of_stretches(max_length: int) -> Sequence[int]:
    """Returns 128, 256, 512 and so on, and the last length."""
    ends = [_FIRST]
    while ends[-1] < max_length:
        ends.append(2 * ends[-1])
    return [*(end for end in ends if end < max_length), max_length]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthOptions:
    """Options of the benchmark."""

    concurrency: Annotated[int, typer.Option(min=1, help="Sequences that grow at the same time.")] = 8
    input_len: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 16
    max_length: Annotated[int, typer.Option(min=2, help="Tokens to generate for each.")] = 16384
    json: JsonFile = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@takes_options(
    GrowthOptions,
    *("model", "dtype", "quantize", "kv_dtype", "prefill_chunk", "seed", "config"),
    seed="Seed of random weights and of prompts.",
)
def main(options: GrowthOptions) -> int:
    """Let sequences grow, and report speed and memory at every doubling of their length."""
    concurrency, input_len, max_length = options.concurrency, options.input_len, options.max_length
    settings = load_settings({"slots": concurrency, **options.settings})
    check_json_file(options.json)
    source = find_model(settings.model, settings.lora)
    sizes = {"concurrency": concurrency, "input_len": input_len, "max_length": max_length}
    document = opening("growth", {**settings_as_json(settings), **sizes})
    core = load(settings, source)
    rng = random.Random(settings.seed)
    prompts = [draw_token_ids(input_len, source.config.vocab_size, rng) for _ in range(concurrency)]
    stretches: list[Stretch] = []
    interrupted = not _grow(core, prompts, max_length, stretches)
    model, device = model_facts(source, settings, core), device_facts()
    result = {"stretches": [{**asdict(stretch), "tokens_per_s": stretch.tokens_per_s} for stretch in stretches]}
    document |= {"model": model, "device": device._asdict(), "interrupted": interrupted, "result": result}
    numbers = model["quantize"] or model["dtype"]
    title = f"{source.name}, {numbers}, on {device.kind}, {concurrency} sequences at a time"
    write_report(_table(title, stretches, interrupted), document, options.json)
    return INTERRUPTED_STATUS if interrupted else 0


def _grow(core: EngineCore, prompts: Sequence[Sequence[int]], max_length: int, stretches: list[Stretch]) -> bool:
    """Appends all stretches. Returns False if Ctrl-C interrupted it."""
    requests = [make_request(f"sequence-{place}", prompt, None) for place, prompt in enumerate(prompts)]
    try:
        with progress_bar("tokens", max_length * len(requests)) as advance:
            stretches.extend(measure(core, requests, ends_of_stretches(max_length), time.perf_counter, advance))
    except KeyboardInterrupt:
        return False
    return True


def measure(
    core: EngineCore, requests: Sequence[Request], ends: Sequence[int], clock: Clock, advance: Advance
) -> Iterator[Stretch]:
    """Lets sequences grow without a limit, yields each stretch when it ends, and finally aborts the sequences.

    The first stretch begins when every sequence has a token, so that no prompt is prefilled in it.
    """
    sequences = _Sequences(core, requests, advance)
    sequences.grow_to(1)
    for end in ends:
        began, before = clock(), sequences.num_tokens
        sequences.grow_to(end)
        seconds = clock() - began
        yield Stretch(end, sequences.num_tokens - before, seconds, resident_bytes(), device_facts().bytes_in_use)
    sequences.end()


class _Sequences:
    """Sequences that grow together.

    Attributes:
      num_tokens: Number of tokens that all sequences have generated.
    """

    def __init__(self, core: EngineCore, requests: Sequence[Request], advance: Advance) -> None:
        self._core = core
        self._advance = advance
        self._lengths = {request.id: 0 for request in requests}
        self.num_tokens = 0
        for request in requests:
            core.add(request)

    def grow_to(self, length: int) -> None:
        """Steps until the shortest sequence has `length` tokens."""
        while min(self._lengths.values()) < length:
            outputs = self._core.step()
            for request_id, output in outputs:
                self._lengths[request_id] += len(output.token_ids)
            gained = sum(len(output.token_ids) for _, output in outputs)
            self.num_tokens += gained
            self._advance(gained)

    def end(self) -> None:
        """Aborts all sequences, which frees their slots."""
        for request_id in self._lengths:
            self._core.abort(request_id)
        while not self._core.is_idle:
            self._core.step()


def _table(title: str, stretches: Sequence[Stretch], interrupted: bool) -> Group:
    columns = ["tokens/s", "process, MiB", "device, MiB"]
    if all(stretch.device_bytes is None for stretch in stretches):
        columns.pop()
    rows = [_row(stretch)[: 1 + len(columns)] for stretch in stretches]
    table = make_table(columns, rows, "up to token")
    table.columns[0].justify = "right"
    return titled(title, [table], interruption(interrupted))


def _row(stretch: Stretch) -> Sequence[str]:
    device = None if stretch.device_bytes is None else stretch.device_bytes / 2**20
    return [
        f"{stretch.length:,}",
        shown_rate(stretch.tokens_per_s),
        number(stretch.resident_bytes / 2**20),
        number(device),
    ]


if __name__ == "__main__":
    typer.run(main)
