"""The demo model as `roost serve` runs it: log-probabilities, greedy tokens, batches, cache hits, saved states."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from .....engine import device_facts
from ....llm.llm import LLM
from ....llm.outputs import RequestOutput
from ....llm.sampling_params import SamplingParams
from ..options import DEMO, ReportOptions
from ..progress import say_step

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


def run(options: ReportOptions) -> Mapping[str, Any]:
    """Returns the checks by name: a text with the number of differences, and whether the check passed."""
    found: dict[str, Any] = {}
    say_step("float32")
    with LLM(DEMO, without_kernels=options.without_kernels, slots=_SLOTS, dtype="float32") as llm:
        found |= _compared(orjson.loads(VALUES.read_bytes()), values_of(llm))
    say_step("as served")
    with LLM(DEMO, without_kernels=options.without_kernels, slots=_SLOTS) as llm:
        found |= {"batch": _batch(llm), "prefix hit": _prefix_hit(llm), "saved state": _saved_state(llm)}
    wrong = [f"{name}: {check['text']}" for name, check in found.items() if not check["is_right"]]
    return {"checks": found, "problems": wrong}


def values_of(llm: LLM) -> Mapping[str, Any]:
    """Returns the log-probabilities of `TEXT`, and the greedy tokens after every prompt of `PROMPTS`."""
    (scored,) = llm.generate([TEXT], SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    greedy = llm.generate(list(PROMPTS), SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0), use_tqdm=False)
    entries = scored.prompt_logprobs or ()
    ids = scored.prompt_token_ids
    logprobs = [entry[token_id].logprob for token_id, entry in zip(ids, entries, strict=True) if entry is not None]
    return {"logprobs": logprobs, "tokens": [list(each.outputs[0].token_ids) for each in greedy]}


def _compared(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> Mapping[str, Any]:
    pairs = zip(expected["logprobs"], actual["logprobs"], strict=True)
    error = max(abs(one - other) for one, other in pairs)
    same = sum(one == other for one, other in zip(expected["tokens"], actual["tokens"], strict=True))
    return {
        "log-probabilities": _check(
            f"at most {error:.1e} from the values that come with Roost, allowed are {_LOGPROB_ERROR:.0e}",
            error <= _LOGPROB_ERROR,
        ),
        "greedy tokens": _check(
            f"{same} of {len(PROMPTS)} answers are those that come with Roost", same == len(PROMPTS)
        ),
    }


def _batch(llm: LLM) -> Mapping[str, Any]:
    params = [_drawn(seed) for seed in range(len(PROMPTS))]
    together = llm.generate(list(PROMPTS), params, use_tqdm=False)
    alone = [llm.generate([prompt], own, use_tqdm=False)[0] for prompt, own in zip(PROMPTS, params, strict=True)]
    return _equal("requests in a batch and alone", alone, together)


def _prefix_hit(llm: LLM) -> Mapping[str, Any]:
    cold, hit = (llm.generate([_LONG], _drawn(1), use_tqdm=False)[0] for _ in range(2))
    if not hit.num_cached_tokens:
        return _check("the second request found nothing in the prefix cache", False)
    return _equal(f"a request without the cache and one with {hit.num_cached_tokens} cached tokens", [cold], [hit])


def _saved_state(llm: LLM) -> Mapping[str, Any]:
    """Compares a whole request with one that continues from the state saved after its first half."""
    (whole,) = llm.generate([TEXT], _greedy(2 * NUM_TOKENS), use_tqdm=False)
    (half,) = llm.generate([TEXT], _greedy(NUM_TOKENS), use_tqdm=False)
    _, following, *expected = whole.outputs[0].token_ids[NUM_TOKENS - 1 :]
    state = llm.save_state(half)
    (rest,) = llm.generate([[following]], _greedy(NUM_TOKENS - 1), use_tqdm=False, from_state=state)
    return _equality("a request straight on and one from a saved state", [tuple(expected)], [rest.outputs[0].token_ids])


def _drawn(seed: int) -> SamplingParams:
    return SamplingParams(max_tokens=NUM_TOKENS, temperature=1.0, seed=seed, logprobs=1, ignore_eos=True)


def _greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)


def _equal(what: str, first: Sequence[RequestOutput], second: Sequence[RequestOutput]) -> Mapping[str, Any]:
    one, other = ([_bits(output) for output in outputs] for outputs in (first, second))
    return _equality(what, one, other)


def _bits(output: RequestOutput) -> tuple[Any, ...]:
    """Returns the tokens. On a CPU, where results are bit-exact, also returns their log-probabilities."""
    choice = output.outputs[0]
    return (choice.token_ids, choice.cumulative_logprob) if device_facts().platform == "cpu" else (choice.token_ids,)


def _equality(what: str, first: Sequence[Any], second: Sequence[Any]) -> Mapping[str, Any]:
    same = sum(one == other for one, other in zip(first, second, strict=True))
    return _check(f"{what}: {same} of {len(first)} are equal", same == len(first))


def _check(text: str, is_right: bool) -> Mapping[str, Any]:
    return {"text": text, "is_right": is_right}
