"""Measures benefits and costs of the prefix cache. Writes benchmarks/state_cache.md by default.

    python benchmarks/state_cache.py [--models demo small] [--longest 50000] [--repeats 5] [--page FILE]

- Time to first token, from outside of a server, of prompts of token ids: with a new system prompt and with one that
  others have sent before; the next turn of conversations of 512 to 50,000 tokens; and the same prompt twice.
- Time of the tokenizer for texts of the same lengths, which is not part of those times.
- Changes of the demo model's output by `--state-cache-inexact`, and its savings after a long reply.
- Memory of 1,000 snapshots of the 2B model's shape, next to the calculated size.
- Throughput of the engine with unrelated prompts, with and without the cache: rounds alternate, in one process.

`small` has 768 channels, 12 layers and a window of 2048, and random weights.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx
import ml_dtypes
import numpy as np
from results_page import commit, paragraph, table
from roost.engine import EngineConfig, EngineCore, Request, SamplingParams, TokenLogprobs, load_runner, open_model
from roost.engine.model.config import PRESETS
from roost.engine.prefix_cache.cache import PrefixCache, PrefixKey
from roost.engine.scheduling.scheduler import Scheduler
from roost.engine.types.config import PREFILL_BLOCK
from roost.engine.types.snapshot import BlockState
from roost.server.commands.bench.report import machine, now, resident_bytes, versions
from roost.server.text.served_model import open_tokenizer
from served import serving

sys.path.append(str(Path(__file__).resolve().parent / "peers"))

from models import SMALL

SYSTEM_TOKENS, QUESTION_TOKENS = 4000, 32
REPLY_TOKENS, NEW_TOKENS = 32, 32
HISTORIES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 50048)
"""Lengths of conversations: block boundaries, so that each turn processes the same number of tokens."""

CONVERSATIONS, TURNS, INEXACT_REPLY, LONG_REPLY = 6, 4, 60, 1000
QUESTIONS = (
    "Tell me a story about a boat that went out to sea.",
    "And then? What did the old man say to the children?",
    "Why was the little dog sad, and who helped it?",
    "Tell it once more, but let it rain the whole day.",
    "What is the name of the girl in the story?",
)

STATES = 1000
MISS_PROMPT, MISS_TOKENS, MISS_REQUESTS, MISS_ROUNDS = 448, 64, 16, 6


class Turns(NamedTuple):
    """Milliseconds to the first token, medians."""

    history: int
    cold_ms: float
    next_turn_ms: float
    same_again_ms: float


class SystemPrompt(NamedTuple):
    """Milliseconds to the first token with a system prompt of `SYSTEM_TOKENS`."""

    cold_ms: float
    hit_ms: float

    @property
    def share(self) -> float:
        return self.hit_ms / self.cold_ms


class Memory(NamedTuple):
    """Bytes of a number of snapshots: growth of the process, count of the cache, and the calculated size."""

    states: int
    taken: int
    counted: int
    arithmetic: int


class Inexact(NamedTuple):
    """Turns of conversations in the exact and the inexact cache.

    Attributes:
      turns: Number of turns.
      same: Number of turns with the same tokens.
      first: Maximum difference of the top 20 log-probabilities of the first token.
      further: Maximum difference of log-probabilities of the following tokens, as long as they are the same.
      exact_ms: Median milliseconds to the first token after a reply of `LONG_REPLY`, with the exact cache.
      inexact_ms: The same with the inexact cache.
    """

    dtype: str
    turns: int
    same: int
    first: float
    further: float
    exact_ms: float
    inexact_ms: float


class Misses(NamedTuple):
    """Tokens per second, prefill and decode; and the loss with the cache, in per cent of each round."""

    off: float
    on: float
    cost_percent: float


# --- time to first token


class Asker:
    """Sends prompts of token ids to a server, distinct by default."""

    def __init__(self, url: str, vocab_size: int) -> None:
        self._client = httpx.Client(base_url=url, timeout=3600)
        self._rng = np.random.default_rng(os.getpid())
        self._vocab_size = vocab_size

    def tokens(self, count: int) -> list[int]:
        return self._rng.integers(10, self._vocab_size, count).tolist()

    def first_token_ms(self, prompt: list[int], *, cached: range) -> float:
        """Checks the number of cached tokens."""
        body = {"token_ids": prompt, "max_tokens": 1, "temperature": 0}
        content = json.dumps(body).encode()
        start = time.perf_counter()
        response = self._client.post("/generate", content=content, headers={"content-type": "application/json"})
        elapsed = 1e3 * (time.perf_counter() - start)
        answer = response.raise_for_status().json()
        found = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        if found not in cached:
            raise RuntimeError(f"{found} of {len(prompt)} tokens were cached, expected {cached}")
        return elapsed


def measure_system_prompt(asker: Asker, repeats: int) -> SystemPrompt:
    cold, hits = [], []
    for _ in range(repeats):
        system = asker.tokens(SYSTEM_TOKENS)
        cold.append(asker.first_token_ms(system + asker.tokens(QUESTION_TOKENS), cached=range(1)))
        at = SYSTEM_TOKENS // PREFILL_BLOCK * PREFILL_BLOCK
        questions = [asker.tokens(QUESTION_TOKENS) for _ in range(repeats)]
        hits += [asker.first_token_ms(system + question, cached=range(at, at + 1)) for question in questions]
    return SystemPrompt(statistics.median(cold), statistics.median(hits))


def measure_turns(asker: Asker, histories: Sequence[int], repeats: int) -> Iterator[Turns]:
    for length in histories:
        history = asker.tokens(length)
        cold = asker.first_token_ms(history, cached=range(1))
        turns, again = [], []
        for _ in range(3 * repeats):
            new = asker.tokens(REPLY_TOKENS + NEW_TOKENS)
            turns.append(asker.first_token_ms(history + new, cached=range(length, length + 1)))
            again.append(asker.first_token_ms(history, cached=range(length, length + 1)))
        yield Turns(length, cold, statistics.median(turns), statistics.median(again))


def measure_tokenizing() -> Iterator[tuple[int, float]]:
    """Returns the tokens of a text, and the milliseconds to encode it, with the demo model's tokenizer."""
    tokenizer = open_tokenizer(open_model("demo"))
    for sentences in (32, 512, 4096):
        text = "The boat went out to sea, and nobody knew when it would come home. " * sentences
        start = time.perf_counter()
        count = len(tokenizer.encode(text))
        yield count, 1e3 * (time.perf_counter() - start)


# --- memory and throughput


def measure_memory() -> Memory:
    """Returns snapshots of one token sequence, so that neighbours share windows; every 50th has a prompt end."""
    shape = PRESETS["2b"]
    layers, rings = shape.block_types.count("recurrent"), shape.block_types.count("attention")
    kind = np.dtype(ml_dtypes.bfloat16)

    def block_state(number: int) -> BlockState:
        h = np.full((layers, shape.lru_width), number, np.float32)
        conv = np.full((layers, shape.conv_width - 1, shape.lru_width), number, kind)
        window = np.full((PREFILL_BLOCK, rings, 2, shape.head_dim), number, kind)
        return BlockState((h, conv), window, None if number % 50 else np.full(shape.width, number, kind))

    cache, last = PrefixCache(shape.window, 100 * 2**30), None
    key = PrefixKey.of(range(STATES * PREFILL_BLOCK), "")
    before = resident_bytes()
    for number in range(STATES):
        last = cache.insert_chunk(key, last, [block_state(number)])
    taken = resident_bytes() - before
    state = layers * shape.lru_width * (4 + 2 * (shape.conv_width - 1))
    token = 2 * 2 * rings * shape.head_dim
    arithmetic = STATES * (state + PREFILL_BLOCK * token) + STATES // 50 * 2 * shape.width
    return Memory(STATES, taken, cache.stats.num_bytes, arithmetic)


def measure_inexact(dtype: str, repeats: int) -> Inexact:
    """The inexact engine leads each conversation; the exact one receives the same prompts."""
    source = open_model("demo")
    runner = load_runner(source, EngineConfig(slots=2, dtype=dtype, state_cache_inexact=True))
    tokenizer, same, first, further = open_tokenizer(source), 0, 0.0, 0.0

    def make_core(*, is_inexact: bool) -> EngineCore:
        cache = PrefixCache(runner.served.config.window, 2**30, is_inexact=is_inexact)
        return EngineCore(Scheduler(2, 10, runner.limits, cache=cache), runner)

    exact, inexact = make_core(is_inexact=False), make_core(is_inexact=True)
    for number in range(CONVERSATIONS):
        history: list[int] = [tokenizer.bos_id or 0]
        for turn in range(TURNS):
            history += tokenizer.encode(f" {QUESTIONS[(number + turn) % len(QUESTIONS)]} " * (1 + number % 3))
            (left, left_scores), (read, read_scores) = (
                _answer(core, history, INEXACT_REPLY, 20) for core in (inexact, exact)
            )
            agreed = next((i for i, (a, b) in enumerate(zip(left, read, strict=True)) if a != b), len(left))
            if turn:
                same += agreed == len(left)
                tops = (dict(scores[0].top) for scores in (left_scores, read_scores))
                first = max(first, *_differences(*tops))
                pairs = zip(left_scores[:agreed], read_scores[:agreed], strict=True)
                further = max([further, *(abs(a.logprob - b.logprob) for a, b in pairs)])
            history += left
    times: dict[EngineCore, list[float]] = {exact: [], inexact: []}
    for number in range(repeats):
        for core, seconds in times.items():
            prompt = np.random.default_rng(number).integers(10, source.config.vocab_size, 500).tolist()
            history = prompt + _answer(core, prompt, LONG_REPLY)[0] + prompt[:NEW_TOKENS]
            start = time.perf_counter()
            _answer(core, history, 1)
            seconds.append(time.perf_counter() - start)
    runner.close()
    medians = (1e3 * statistics.median(times[core]) for core in (exact, inexact))
    return Inexact(dtype, CONVERSATIONS * (TURNS - 1), same, first, further, *medians)


def _answer(
    core: EngineCore, prompt: Sequence[int], count: int, num_top: int | None = None
) -> tuple[list[int], list[TokenLogprobs]]:
    """Returns the top tokens and, if requested, their log-probabilities."""
    core.add(Request("a", tuple(prompt), SamplingParams(max_tokens=count, temperature=0, logprobs=num_top)))
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] = []
    while not core.is_idle:
        for _, output in core.step():
            token_ids += output.token_ids
            logprobs += output.logprobs or ()
    return token_ids, logprobs


def _differences(one: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    return [abs(one[token_id] - other[token_id]) for token_id in one.keys() & other.keys()]


def measure_misses(model: str) -> Misses:
    """Measures with a cache that is full from the first round on, so that each snapshot evicts another."""
    source = open_model(model)
    runner = load_runner(source, EngineConfig(slots=8))
    cache = PrefixCache(runner.served.config.window, 32 * 2**20)
    rng = np.random.default_rng(0)
    speeds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * MISS_ROUNDS + 2):
        is_on = number % 2 == 1
        runner.keeps_snapshots = is_on
        core = EngineCore(Scheduler(runner.served.slots, 100, runner.limits, cache=cache if is_on else None), runner)
        for index in range(MISS_REQUESTS):
            prompt = tuple(rng.integers(10, source.config.vocab_size, MISS_PROMPT).tolist())
            core.add(Request(f"{number}-{index}", prompt, SamplingParams(max_tokens=MISS_TOKENS)))
        start = time.perf_counter()
        while not core.is_idle:
            core.step()
        speeds[is_on].append(MISS_REQUESTS * (MISS_PROMPT + MISS_TOKENS) / (time.perf_counter() - start))
    runner.close()
    off, on = speeds[False][1:], speeds[True][1:]
    costs = [100 * (1 - b / a) for a, b in zip(off, on, strict=True)]
    return Misses(statistics.median(off), statistics.median(on), statistics.median(costs))


# --- the page


class Result(NamedTuple):
    """Runs all measurements of one model."""

    model: str
    system_prompt: SystemPrompt
    turns: Sequence[Turns]
    misses: Misses


def measure_model(name: str, options: argparse.Namespace, folder: Path) -> Result:
    model = name
    if name == "small":
        config = folder / "small.json"
        config.write_text(json.dumps(SMALL.hf_config("float32")))
        model = f"random:{config}"
    misses = measure_misses(model)
    with serving(folder / "stderr", model, "--slots", "8", "--state-cache-gib", "4") as url:
        asker = Asker(url, open_model(model).config.vocab_size)
        asker.first_token_ms(asker.tokens(1000), cached=range(1))
        system_prompt = measure_system_prompt(asker, options.repeats)
        histories = [length for length in HISTORIES if length <= options.longest]
        turns = list(measure_turns(asker, histories, options.repeats))
    return Result(name, system_prompt, turns, misses)


def page(
    results: Sequence[Result],
    inexact: Sequence[Inexact],
    memory: Memory,
    tokenizing: Sequence[tuple[int, float]],
    busy: float,
) -> str:
    facts, packages, mib = machine(), versions(), 2**20
    texts = ", ".join(f"{ms:.1f} ms for {count}" for count, ms in tokenizing)
    prompts = [(r.model, r.system_prompt, f"{100 * r.system_prompt.share:.1f} %") for r in results]
    blocks = [
        "# The prefix cache: what it saves, and what it costs",
        "    python benchmarks/state_cache.py",
        "**What**: time that a cached prefix saves, and the memory and throughput that the cache costs.",
        """**How**: times are milliseconds from a request's first byte to its answer of one token, over HTTP, with token
        ids as prompts; medians. `demo` is the demo model. `small` has 110 million random weights.""",
        f"""**Measured** on {now()[:10]} with tree {commit()}, on {facts["cpus"]} CPUs of {facts["cpu"]}, jax
        {packages["jax"]}; load average {busy:.1f} before.""",
        f"## A system prompt of {SYSTEM_TOKENS} tokens, then a question of {QUESTION_TOKENS}",
        "`new` is the first request with the system prompt, `cached` a later one with another question.",
        table(
            ("model", "new", "cached", "cached ÷ new"),
            [(model, *map(_tenths, own), share) for model, own, share in prompts],
        ),
        f"## The next turn of a conversation: a reply of {REPLY_TOKENS} tokens and {NEW_TOKENS} new ones",
        """`cold` is the history alone, for the first time. `next turn` adds the reply and the new tokens. `again` is
        the same prompt once more.""",
        *map(_turns_table, results),
        f"Prompts that are texts also take the tokenizer's time: {texts} tokens.",
        "## `--state-cache-inexact`: the demo model goes on from what generating has left",
        f"""{CONVERSATIONS} conversations of {TURNS} turns, greedy, each of {INEXACT_REPLY} tokens: the turns behind the
        first beside those of an exact cache, which reads the last reply. `first` and `further` are the largest
        differences of log-probabilities: of the first token's 20 likeliest, and of the tokens that follow while they
        are the same. Times are of a turn of {NEW_TOKENS} tokens after a reply of {LONG_REPLY}, to its first token, in
        the engine alone.""",
        table(
            ("demo in", "turns", "the same to the last token", "first", "further", "exact, ms", "inexact, ms"),
            [
                (m.dtype, f"{m.turns}", f"{m.same}", *map("{:.1e}".format, (m.first, m.further)), *map(_tenths, m[5:]))
                for m in inexact
            ],
        ),
        f"## Memory of {memory.states} neighbouring states of the 2B model's shape",
        f"""Each takes [0.44 + 0.50 MiB](../docs/explanation/constant-size-state.md): its recurrent part, and the keys
        and values of {PREFILL_BLOCK} tokens.""",
        f"""The process took {memory.taken / mib:.0f} MiB, the cache counts {memory.counted / mib:.0f} MiB, and
        arithmetic says {memory.arithmetic / mib:.0f} MiB (states, each block of keys and values once, ends of prompts):
        {100 * (memory.taken / memory.arithmetic - 1):+.1f} %.""",
        f"## Throughput when every prompt is new: {MISS_PROMPT} prompt tokens and {MISS_TOKENS} generated ones",
        table(
            ("model", "cache off, tokens/s", "cache on, tokens/s", "cost"),
            [
                (r.model, f"{r.misses.off:.0f}", f"{r.misses.on:.0f}", f"{r.misses.cost_percent:+.1f} %")
                for r in results
            ],
        ),
        f"""Medians of {MISS_ROUNDS} alternating rounds, each of {MISS_REQUESTS} requests on 8 slots. The cache is full,
        so every new snapshot evicts others.""",
    ]
    return "\n\n".join(block if block.startswith(("|", "#", "    ")) else paragraph(block) for block in blocks) + "\n"


def _tenths(number: float) -> str:
    return f"{number:.1f}"


def _turns_table(result: Result) -> str:
    shortest = result.turns[0].next_turn_ms
    rows = [
        (
            f"{turn.history}",
            *map(_tenths, turn[1:3]),
            f"{turn.next_turn_ms / shortest:.2f}",
            _tenths(turn.same_again_ms),
        )
        for turn in result.turns
    ]
    return table((f"{result.model}: history", "cold", "next turn", "÷ after the shortest", "again"), rows)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--models", nargs="+", choices=["demo", "small"], default=["demo", "small"])
    arguments.add_argument("--longest", type=int, default=HISTORIES[-1], help="of the histories, in tokens")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--page", type=Path, default=Path(__file__).with_suffix(".md"))
    options = arguments.parse_args()
    busy = machine()["load_average"]
    memory, tokenizing = measure_memory(), list(measure_tokenizing())
    with tempfile.TemporaryDirectory() as folder:
        results = [measure_model(name, options, Path(folder)) for name in options.models]
    inexact = [measure_inexact(dtype, options.repeats) for dtype in ("float32", "bfloat16")]
    text = page(results, inexact, memory, tokenizing, busy)
    options.page.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
