"""Sends the demo corpus's evaluation list to a running server and counts the correct answers.

    roost serve demo &
    python tools/eval_demo.py demo-eval-public.jsonl --url http://127.0.0.1:8000

Answers are greedy, of at most 300 tokens. `--card configs/demo/README.md` writes the scores into the model card.
"""

import argparse
import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

MAX_TOKENS: Final = 300
CARD_MARKS: Final = ("<!-- scores: written by tools/eval_demo.py -->", "<!-- end of scores -->")


@dataclass(frozen=True, slots=True)
class Question:
    """A line of the list.

    Attributes:
      id: Name of the question.
      skill: Skill that it tests.
      messages: The dialogue up to the answer, with the roles of the HTTP API.
      expect: The whole answer, or a part of it if not `exact`.
      exact: Whether the answer must equal `expect`.
      min_chars: Minimum length of an answer that counts.
      stretch: Whether the model has never seen its wording; such questions are counted separately.
    """

    id: str
    skill: str
    messages: tuple[Mapping[str, str], ...]
    expect: str
    exact: bool
    min_chars: int = 0
    stretch: bool = False

    def accepts(self, answer: str) -> bool:
        """Returns whether an answer is correct."""
        answer = answer.strip()
        if self.exact:
            return answer == self.expect
        return self.expect.lower() in answer.lower() and len(answer) >= self.min_chars


@dataclass(frozen=True, slots=True)
class Answered:
    """A question and the model's answer."""

    question: Question
    answer: str

    @property
    def right(self) -> bool:
        """Whether the answer is correct."""
        return self.question.accepts(self.answer)


def parse_question(line: str) -> Question:
    """Parses a line of the list; its role "model" is "assistant" in the API."""
    fields = json.loads(line)
    roles = {"model": "assistant"}
    messages = tuple({"role": roles.get(m["role"], m["role"]), "content": m["content"]} for m in fields["messages"])
    return Question(
        id=fields["id"],
        skill=fields["skill"],
        messages=messages,
        expect=fields["expect"],
        exact=fields["match"] == "exact",
        min_chars=fields.get("min_chars", 0),
        stretch=fields.get("stretch", False),
    )


async def ask_all(url: str, questions: Sequence[Question], concurrency: int) -> list[Answered]:
    """Sends all questions, several at a time, and returns the answers in the questions' order."""
    turnstile = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=120.0) as client:
        model = await _first_model(client)

        async def ask(question: Question) -> Answered:
            async with turnstile:
                return Answered(question, await _ask(client, model, question))

        return list(await asyncio.gather(*map(ask, questions)))


async def _first_model(client: httpx.AsyncClient) -> str:
    response = await client.get("/v1/models")
    response.raise_for_status()
    return response.json()["data"][0]["id"]


async def _ask(client: httpx.AsyncClient, model: str, question: Question) -> str:
    body = {"model": model, "messages": question.messages, "temperature": 0, "max_tokens": MAX_TOKENS}
    response = await client.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    return response.json()["choices"][0]["message"]["content"]


TOTALS: Final[Mapping[str, Callable[[Question], bool]]] = {
    "exact": lambda q: q.exact and not q.stretch,
    "mem_near": lambda q: q.skill == "mem_near" and not q.stretch,
    "mem_far": lambda q: q.skill == "mem_far" and not q.stretch,
    "stories": lambda q: not q.exact and not q.stretch,
    "stretch": lambda q: q.stretch,
}
"""Reported totals, and the questions that belong to each."""


def score(answered: Sequence[Answered]) -> str:
    """Returns the number and the share of correct answers, out of at least one."""
    right = sum(each.right for each in answered)
    return f"{right} of {len(answered)} ({100 * right / len(answered):.0f} %)"


def totals(answered: Sequence[Answered]) -> dict[str, str]:
    """Returns the score of each of `TOTALS` that has questions."""
    found = {name: [each for each in answered if belongs(each.question)] for name, belongs in TOTALS.items()}
    return {name: score(some) for name, some in found.items() if some}


def imperfect(answered: Sequence[Answered]) -> dict[str, str]:
    """Returns the score of each skill with wrong answers, without stretch questions, in the list's order."""
    skills: defaultdict[str, list[Answered]] = defaultdict(list)
    for each in answered:
        if not each.question.stretch:
            skills[each.question.skill].append(each)
    return {skill: score(some) for skill, some in skills.items() if not all(each.right for each in some)}


def show(answered: Sequence[Answered]) -> None:
    """Prints wrong answers and scores."""
    for each in answered:
        if not each.right:
            question = each.question
            expected = f"{'' if question.exact else 'with '}{question.expect!r}"
            print(f"{question.id} {question.skill}: expected {expected}, got {each.answer[:120]!r}")
    for name, result in totals(answered).items():
        print(f"{name}: {result}")


def write_card(path: Path, answered: Sequence[Answered]) -> None:
    """Writes the scores between the marks of the model card.

    Raises:
      ValueError: The card has no such marks.
    """
    card = path.read_text(encoding="utf-8")
    begin, end = (card.find(mark) for mark in CARD_MARKS)
    if not 0 <= begin < end:
        raise ValueError(f"{path}: has no lines {CARD_MARKS[0]!r} and {CARD_MARKS[1]!r}")
    rows = [f"| {name} | {result} |" for name, result in totals(answered).items()]
    failed = [f"{skill}: {result}" for skill, result in imperfect(answered).items()]
    text = [
        CARD_MARKS[0],
        "The public list of the corpus (`demo-eval-public.jsonl`), asked through the HTTP API, greedy. No question of",
        "it was trained on in this wording, except those marked `seen`; `stretch` has wordings that no template has.",
        "",
        "| questions | right |",
        "| --- | --- |",
        *rows,
        "",
        f"Skills with wrong answers: {', '.join(failed) or 'none'}.",
    ]
    path.write_text(card[:begin] + "\n".join(text) + "\n" + card[end:], encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = argparse.ArgumentParser(description="Scores a running server on the demo model's evaluation list.")
    parser.add_argument("questions", type=Path, help="demo-eval-public.jsonl")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=8, help="questions at a time (default: %(default)s)")
    parser.add_argument("--card", type=Path, help="model card to write the scores into")
    options = parser.parse_args(arguments)

    questions = [parse_question(line) for line in options.questions.read_text(encoding="utf-8").splitlines()]
    try:
        answered = asyncio.run(ask_all(options.url, questions, options.concurrency))
    except httpx.HTTPError as error:
        print(f"{options.url}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    show(answered)
    if options.card is not None:
        write_card(options.card, answered)
    return 0


if __name__ == "__main__":
    sys.exit(main())
