"""Compares measurements with goals: the rows of the result, as pure functions."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from plan import AGREEING, PROMPT_LENGTHS, Goal, Ref

Verdict = Literal["stretch", "reached", "missed", "told", "unknown"]


@dataclass(frozen=True)
class Row:
    """One goal and its result.

    Attributes:
      ours: Median over rounds.
      theirs: Median over rounds.
      ratio: Median over rounds of the ratio within each; `ours` itself for a goal without `theirs`.
      short_by: Share of the bound by which the goal was missed.
      why: Reason for which there is no ratio.
    """

    goal: Goal
    ours: float | None
    theirs: float | None
    ratio: float | None
    verdict: Verdict
    short_by: float = 0.0
    why: str = ""


def judge(document: Mapping[str, Any], goals: Sequence[Goal]) -> list[Row]:
    """Returns the rows of the requested families."""
    wanted = document["options"]["families"]
    return [row_of(document, goal) for goal in goals if goal.family in wanted]


def row_of(document: Mapping[str, Any], goal: Goal) -> Row:
    ours = values_of(document, goal.ours)
    theirs = None if goal.theirs is None else values_of(document, goal.theirs)
    if not ours or theirs == []:
        missing = goal.ours if not ours or goal.theirs is None else goal.theirs
        return Row(goal, middle(ours), middle(theirs), None, "unknown", why=reason(document, missing))
    ratios = ours if theirs is None else [one / other for one, other in zip(ours, theirs, strict=False)]
    ratio = statistics.median(ratios)
    verdict, short_by = compare(goal, ratio)
    return Row(goal, middle(ours), middle(theirs), ratio, verdict, short_by)


def values_of(document: Mapping[str, Any], ref: Ref) -> list[float]:
    """Returns a number of every round."""
    runs = document["runs"].get(ref.task, {}).get(ref.entrant, [])
    return [run[ref.field] for run in runs if ref.field in run]


def middle(values: Sequence[float] | None) -> float | None:
    return statistics.median(values) if values else None


def compare(goal: Goal, ratio: float) -> tuple[Verdict, float]:
    """Returns the verdict, and the share of the bound by which the goal was missed."""
    if goal.stretch is not None and is_within(goal, ratio, goal.stretch):
        return "stretch", 0.0
    if goal.at_least is None:
        return "told", 0.0
    if is_within(goal, ratio, goal.at_least):
        return "reached", 0.0
    return "missed", abs(ratio - goal.at_least) / goal.at_least


def is_within(goal: Goal, ratio: float, bound: float) -> bool:
    return ratio <= bound if goal.lower else ratio >= bound


def reason(document: Mapping[str, Any], ref: Ref) -> str:
    """Returns why there is no such number, in a line that starts with the contestant."""
    facts = document["entrants"].get(ref.entrant, {})
    failure = document["failures"].get(ref.task, {}).get(ref.entrant) or facts.get("failure") or "was not measured"
    return f"{facts.get('title', ref.entrant)}: {failure}"


@dataclass(frozen=True)
class Agreement:
    """Whether a contestant generates the same after a prompt alone and in a batch.

    Attributes:
      lengths: Lengths of the prompts.
      same: Whether all tokens are the same, by prompt.
      apart: Maximum difference of log-probabilities of the first new token, by prompt.
      handed_out: Number of new tokens that a call returns by prompt, if it does not return all.
      of: Expected number of new tokens.
    """

    title: str
    lengths: Sequence[int]
    same: Sequence[bool]
    apart: Sequence[float]
    handed_out: Sequence[int]
    of: int


def agreements(document: Mapping[str, Any]) -> list[Agreement]:
    """Returns the agreement of all contestants that responded."""
    asked = document["runs"].get("agree", {})
    return [agreement(document["entrants"][name]["title"], asked[name][0]) for name in AGREEING if asked.get(name)]


def agreement(title: str, run: Mapping[str, Any]) -> Agreement:
    pairs = list(zip(run["alone"], run["together"], strict=True))
    return Agreement(
        title,
        PROMPT_LENGTHS[: len(pairs)],
        [one["tokens"] == other["tokens"] for one, other in pairs],
        [distance(one["top"], other["top"]) for one, other in pairs],
        run.get("handed_out", []),
        len(run["alone"][0]["tokens"]),
    )


def distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Returns the maximum difference of log-probabilities of tokens that are in both; infinite if there is none."""
    common = one.keys() & other.keys()
    return max((abs(one[token] - other[token]) for token in common), default=float("inf"))
