"""Checks: the machine, every kernel against float32, the demo model as `roost serve` runs it, and a shipped program."""

import importlib.metadata
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import orjson

from ....engine import (
    TPUS,
    KernelCheck,
    check_kernels,
    compiles_from_cache,
    device_facts,
    device_named,
    memory_stats,
)
from ...assembly.service import engine_config
from ...llm.llm import LLM
from ...llm.outputs import RequestOutput
from ...llm.sampling_params import SamplingParams
from ...model_hub import find_model
from ..bench.report import machine as machine_facts
from ..bench.report import now, versions
from ..options import ReportOptions
from .parts import say_step

_PACKAGES: Final = re.compile(r"(jax|libtpu|nvidia-|rocm)", re.IGNORECASE)
_ROOT: Final = Path(__file__).resolve().parents[3]


def machine(options: ReportOptions) -> Mapping[str, Any]:
    """Returns facts about the machine."""
    facts = device_facts()
    return {
        "time": now(),
        "device": facts._asdict(),
        "device_memory_bytes": memory_stats().get("bytes_limit"),
        "machine": machine_facts(),
        "versions": versions(),
        "accelerator_packages": _accelerator_packages(),
        "tree": _tree(),
        "model": options.model,
        "problems": [],
    }


def _accelerator_packages() -> Mapping[str, str]:
    found = {each.name: each.version for each in importlib.metadata.distributions() if _PACKAGES.match(each.name or "")}
    return dict(sorted(found.items()))


def _tree() -> str | None:
    """Returns the commit that is checked out; None outside a clone."""
    if not (_ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None


def kernels(options: ReportOptions) -> Mapping[str, Any]:
    """Returns all checks, and the names of the kernels that are wrong."""
    settings = options.load()
    source = find_model(settings.model)
    checks = list(check_kernels(source, engine_config(settings), say_step))
    wrong = [check for check in checks if not check.is_right]
    return {
        "checks": [{**asdict(check), "shape": list(check.shape), "is_right": check.is_right} for check in checks],
        "wrong_kernels": sorted({check.kernel for check in wrong}),
        "problems": [_problem(check) for check in wrong],
    }


def _problem(check: KernelCheck) -> str:
    where = f"{check.kernel}, {check.step} of {check.shape.rows} x {check.shape.tokens}, {check.numbers}"
    if check.failure is not None:
        return f"{where}: {check.failure}"
    found = []
    if check.distance is not None and not check.distance.relative <= check.allowed:
        found.append(f"differs by {check.distance.relative:.1e}, allowed are {check.allowed:.1e}")
    if check.num_unequal:
        found.append(f"{check.num_unequal} elements have other bits in a second run")
    if not check.is_closed:
        found.append("idle rows or padding reach other tokens")
    return f"{where}: {'; '.join(found)}"


DEMO: Final = "demo"
"""Model of the checks of results."""

VALUES: Final = Path(__file__).with_name("demo_values.json")
"""Results of the demo model in float32 on a CPU; `tools/demo_values.py` writes them."""

TEXT: Final = (
    "The lighthouse keeper counted the ships that passed each night, and wrote their names in a book. In the morning "
    "he read them aloud, one after the other, as if they could hear him."
)
"""Text whose log-probabilities are compared."""

PROMPTS: Final = (
    "A list of animals: cat, dog,",
    "Once upon a time there was",
    "The sum of two and three is",
    "def add(a, b):",
)
NUM_TOKENS: Final = 24
_SLOTS: Final = 4

_LOGPROB_ERROR: Final = 2e-3
"""Maximum difference of a log-probability in float32."""

_LONG: Final = " ".join([TEXT] * 6)
"""Prompt with several block boundaries, at which the prefix cache keeps snapshots."""


def demo(options: ReportOptions) -> Mapping[str, Any]:
    """Returns the checks: a text with the number of differences, and whether the check passed."""
    say_step("float32")
    with LLM(DEMO, without_kernels=options.without_kernels, slots=_SLOTS, dtype="float32") as llm:
        checks = _compared(orjson.loads(VALUES.read_bytes()), values_of(llm))
    say_step("as served")
    with LLM(DEMO, without_kernels=options.without_kernels, slots=_SLOTS) as llm:
        checks += [_batch(llm), _prefix_hit(llm), _saved_state(llm)]
    wrong = [f"{each['check']}: {each['found']}" for each in checks if not each["is_right"]]
    return {"checks": checks, "problems": wrong}


def values_of(llm: LLM) -> Mapping[str, Any]:
    """Returns the log-probabilities of `TEXT`, and the greedy tokens after every prompt of `PROMPTS`."""
    (scored,) = llm.generate([TEXT], SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    greedy = llm.generate(list(PROMPTS), SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0), use_tqdm=False)
    entries = scored.prompt_logprobs or ()
    ids = scored.prompt_token_ids
    logprobs = [entry[token_id].logprob for token_id, entry in zip(ids, entries, strict=True) if entry is not None]
    return {"logprobs": logprobs, "tokens": [list(each.outputs[0].token_ids) for each in greedy]}


def _compared(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    pairs = zip(expected["logprobs"], actual["logprobs"], strict=True)
    error = max(abs(one - other) for one, other in pairs)
    text = f"at most {error:.1e} from the values that come with Roost, allowed are {_LOGPROB_ERROR:.0e}"
    return [
        _verdict("log-probabilities", text, error <= _LOGPROB_ERROR),
        _equality("greedy tokens", "answers and those that come with Roost", expected["tokens"], actual["tokens"]),
    ]


def _batch(llm: LLM) -> Mapping[str, Any]:
    params = [_drawn(seed) for seed in range(len(PROMPTS))]
    together = llm.generate(list(PROMPTS), params, use_tqdm=False)
    alone = [llm.generate([prompt], own, use_tqdm=False)[0] for prompt, own in zip(PROMPTS, params, strict=True)]
    return _equality("batch", "requests in a batch and alone", map(_bits, alone), map(_bits, together))


def _prefix_hit(llm: LLM) -> Mapping[str, Any]:
    cold, hit = (llm.generate([_LONG], _drawn(1), use_tqdm=False)[0] for _ in range(2))
    if not hit.num_cached_tokens:
        return _verdict("prefix hit", "the second request found nothing in the prefix cache", False)
    what = f"a request without the cache and one with {hit.num_cached_tokens} cached tokens"
    return _equality("prefix hit", what, [_bits(cold)], [_bits(hit)])


def _saved_state(llm: LLM) -> Mapping[str, Any]:
    """Compares a whole request with one that continues from the state saved after its first half."""
    (whole,) = llm.generate([TEXT], _greedy(2 * NUM_TOKENS), use_tqdm=False)
    (half,) = llm.generate([TEXT], _greedy(NUM_TOKENS), use_tqdm=False)
    _, following, *expected = whole.outputs[0].token_ids[NUM_TOKENS - 1 :]
    state = llm.save_state(half)
    (rest,) = llm.generate([[following]], _greedy(NUM_TOKENS - 1), use_tqdm=False, from_state=state)
    what = "a request straight on and one from a saved state"
    return _equality("saved state", what, [tuple(expected)], [rest.outputs[0].token_ids])


def _drawn(seed: int) -> SamplingParams:
    return SamplingParams(max_tokens=NUM_TOKENS, temperature=1.0, seed=seed, logprobs=1, ignore_eos=True)


def _greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)


def _bits(output: RequestOutput) -> tuple[Any, ...]:
    """Returns the tokens. On a CPU, where results are bit-exact, also returns their log-probabilities."""
    choice = output.outputs[0]
    return (choice.token_ids, choice.cumulative_logprob) if device_facts().platform == "cpu" else (choice.token_ids,)


def _equality(check: str, what: str, first: Iterable[Any], second: Iterable[Any]) -> Mapping[str, Any]:
    equal = [one == other for one, other in zip(first, second, strict=True)]
    return _verdict(check, f"{what}: {sum(equal)} of {len(equal)} are equal", all(equal))


def _verdict(check: str, found: str, is_right: bool) -> Mapping[str, Any]:
    return {"check": check, "found": found, "is_right": is_right}


def ahead(options: ReportOptions) -> Mapping[str, Any]:
    """Returns whether this process finds a program in the folder of another, which compiled it without the TPU."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as apart,
    ):
        chip = device_named(apart.submit(device_facts).result().kind)
        chip = chip if chip in TPUS else None
        say_step(f"a program for {chip}, without the chip" if chip else "a program, by another process")
        _, ahead_s = apart.submit(_compile, options, Path(folder), chip).result()
        say_step("the same program, on this device")
        is_found, start_s = _compile(options, Path(folder), None)
    return {"chip": chip, "is_found": is_found, "ahead_seconds": ahead_s, "start_seconds": start_s, "problems": []}


def _compile(options: ReportOptions, folder: Path, chip: str | None) -> tuple[bool, float]:
    """Returns whether a program was in a folder, and the seconds until it was compiled."""
    settings, began = options.load(), time.perf_counter()
    config = replace(engine_config(settings), compile_cache=folder)
    return compiles_from_cache(find_model(settings.model), config, chip), time.perf_counter() - began
