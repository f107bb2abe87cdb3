"""Sends the demo corpus's evaluation list to a running server and counts the correct answers.

    roost serve demo &
    python tools/eval_demo.py demo-eval-public.jsonl --url http://127.0.0.1:8000

Answers are greedy, of at most 300 tokens. `--card configs/demo/README.md` writes the scores into the model card.

A line of the list has the `skill` that it tests, the `messages` before the answer, and what the answer must be:
`expect` if `match` is "exact", or else a text of at least `min_chars` with `expect` in it. The model has never seen the
wording of `stretch` questions, which are counted separately.
"""

import argparse
import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx

MAX_TOKENS: Final = 300
CONCURRENCY: Final = 8
CARD_MARKS: Final = ("<!-- scores: written by tools/eval_demo.py -->", "<!-- end of scores -->")

type Question = Mapping[str, Any]
"""A line of the list, also with the model's `answer` and whether it is `right`."""


async def ask_all(url: str, questions: Sequence[Question]) -> list[Question]:
    """Returns the questions with their answers, several of which are asked at a time."""
    turnstile = asyncio.Semaphore(CONCURRENCY)
    async with httpx.AsyncClient(base_url=url, timeout=120.0) as client:

        async def ask(question: Question) -> Question:
            roles = {"model": "assistant"}
            messages = [{**each, "role": roles.get(each["role"], each["role"])} for each in question["messages"]]
            body = {"messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS}
            async with turnstile:
                response = await client.post("/v1/chat/completions", json=body)
            answer = response.raise_for_status().json()["choices"][0]["message"]["content"]
            return {**question, "answer": answer, "right": is_right(question, answer.strip())}

        return list(await asyncio.gather(*map(ask, questions)))


def is_right(question: Question, answer: str) -> bool:
    """Returns whether an answer is correct."""
    if question["match"] == "exact":
        return bool(answer == question["expect"])
    return question["expect"].lower() in answer.lower() and len(answer) >= question.get("min_chars", 0)


TOTALS: Final[Mapping[str, Callable[[Question], bool]]] = {
    "exact": lambda q: q["match"] == "exact" and not q.get("stretch"),
    "mem_near": lambda q: q["skill"] == "mem_near" and not q.get("stretch"),
    "mem_far": lambda q: q["skill"] == "mem_far" and not q.get("stretch"),
    "stories": lambda q: q["match"] != "exact" and not q.get("stretch"),
    "stretch": lambda q: q.get("stretch", False),
}
"""Reported totals, and the questions that belong to each."""


def score(answered: Sequence[Question]) -> str:
    """Returns the number and the share of correct answers, out of at least one."""
    right = sum(each["right"] for each in answered)
    return f"{right} of {len(answered)} ({100 * right / len(answered):.0f} %)"


def totals(answered: Sequence[Question]) -> dict[str, str]:
    """Returns the score of each of `TOTALS` that has questions."""
    found = {name: list(filter(belongs, answered)) for name, belongs in TOTALS.items()}
    return {name: score(some) for name, some in found.items() if some}


def imperfect(answered: Sequence[Question]) -> dict[str, str]:
    """Returns the score of each skill with wrong answers, without stretch questions, in the list's order."""
    known = [each for each in answered if not each.get("stretch")]
    skills = dict.fromkeys(each["skill"] for each in known if not each["right"])
    return {skill: score([each for each in known if each["skill"] == skill]) for skill in skills}


def write_card(path: Path, answered: Sequence[Question]) -> None:
    """Writes the scores between the marks of the model card."""
    failed = [f"{skill}: {result}" for skill, result in imperfect(answered).items()]
    text = [
        CARD_MARKS[0],
        "The public list of the corpus (`demo-eval-public.jsonl`), asked through the HTTP API, greedy. No question of",
        "it was trained on in this wording, except those marked `seen`; `stretch` has wordings that no template has.",
        "",
        "| questions | right |",
        "| --- | --- |",
        *(f"| {name} | {result} |" for name, result in totals(answered).items()),
        "",
        f"Skills with wrong answers: {', '.join(failed) or 'none'}.",
        CARD_MARKS[1],
    ]
    place = re.compile(".*".join(CARD_MARKS), re.DOTALL)
    path.write_text(place.sub(lambda _: "\n".join(text), path.read_text(encoding="utf-8")), encoding="utf-8")


def main() -> None:
    """Asks all questions, and prints wrong answers and scores."""
    parser = argparse.ArgumentParser(description="Scores a running server on the demo model's evaluation list.")
    parser.add_argument("questions", type=Path, help="demo-eval-public.jsonl")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server (default: %(default)s)")
    parser.add_argument("--card", type=Path, help="model card to write the scores into")
    options = parser.parse_args()
    questions = [json.loads(line) for line in options.questions.read_text(encoding="utf-8").splitlines()]
    answered = asyncio.run(ask_all(options.url, questions))
    for each in answered:
        if not each["right"]:
            print(f"{each['id']} {each['skill']}: expected {each['expect']!r}, got {each['answer'][:120]!r}")
    for name, result in totals(answered).items():
        print(f"{name}: {result}")
    if options.card is not None:
        write_card(options.card, answered)


if __name__ == "__main__":
    main()
