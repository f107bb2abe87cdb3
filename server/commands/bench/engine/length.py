"""`roost bench length`: measures speed and memory while sequences grow."""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.console import Group

from .....engine import EngineCore, Request, device_facts
from ....model_hub import find_model
from ....settings import Settings, SettingsError
from ....terminal.failure import INTERRUPTED_STATUS
from ..environment import resident_bytes
from ..plot import draw_lengths
from ..progress import Advance, progress_bar
from ..report import Outputs, interruption, make_table, number, opening, rate, report, write_file
from ..workload import draw_token_ids
from .driver import Clock
from .loading import load, make_request, model_facts, settings_as_json

_FIRST: Final = 128
"""Generated tokens at the end of the first stretch. The length doubles with each further stretch."""


@dataclass(frozen=True, slots=True)
class LengthBenchOptions:
    """Options of `roost bench length`.

    Attributes:
      settings: Settings of the engine; their seed also draws the prompts.
      concurrency: Number of sequences that grow at the same time.
      input_len: Tokens of each prompt.
      max_length: Tokens to generate for each sequence.
    """

    settings: Settings
    concurrency: int
    input_len: int
    max_length: int


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


def bench_length(options: LengthBenchOptions, outputs: Outputs) -> int:
    """Measures and reports.

    Returns:
      The exit status.

    Raises:
      SettingsError: An option cannot be used.
      RoostError: The model cannot be loaded.
    """
    outputs.check()
    source = find_model(options.settings.model, options.settings.lora)
    document = opening("length", _as_json(options))
    core = load(options.settings, source, options.concurrency, slots=options.concurrency)
    if options.concurrency > core.stats.slots:
        raise SettingsError(f"--concurrency {options.concurrency}: there are {core.stats.slots} slots; raise --slots")
    rng = random.Random(options.settings.seed)
    prompts = [draw_token_ids(options.input_len, source.config.vocab_size, rng) for _ in range(options.concurrency)]
    stretches: list[Stretch] = []
    interrupted = not _grow(core, prompts, options.max_length, stretches)
    model, device = model_facts(source, options.settings, core), device_facts()
    result = {"stretches": [{**asdict(stretch), "tokens_per_s": stretch.tokens_per_s} for stretch in stretches]}
    document |= {"model": model, "device": device._asdict(), "interrupted": interrupted, "result": result}
    numbers, count = model["quantize"] or model["dtype"], options.concurrency
    title = f"{source.name}, {numbers}, on {device.kind}, {count} sequences at a time"
    outputs.console().print(_table(title, stretches, interrupted))
    outputs.write_json(document)
    if outputs.svg is not None and stretches:
        write_file("--svg", outputs.svg, _draw(title, stretches))
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
    return report(title, [table], interruption(interrupted))


def _row(stretch: Stretch) -> Sequence[str]:
    device = None if stretch.device_bytes is None else stretch.device_bytes / 2**20
    return [f"{stretch.length:,}", rate(stretch.tokens_per_s), number(stretch.resident_bytes / 2**20), number(device)]


def _draw(title: str, stretches: Sequence[Stretch]) -> bytes:
    memory = {"process": [stretch.resident_bytes / 2**20 for stretch in stretches]}
    if all(stretch.device_bytes is not None for stretch in stretches):
        memory["device"] = [(stretch.device_bytes or 0) / 2**20 for stretch in stretches]
    lengths = [stretch.length for stretch in stretches]
    return draw_lengths(title, lengths, [stretch.tokens_per_s for stretch in stretches], memory)


def _as_json(options: LengthBenchOptions) -> Mapping[str, Any]:
    return {
        **settings_as_json(options.settings),
        "concurrency": options.concurrency,
        "input_len": options.input_len,
        "max_length": options.max_length,
    }
