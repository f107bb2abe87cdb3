"""A long chat: some 40,000 tokens are read once. Questions, an edited message and forks restore them from states.

    python examples/long_chat.py [URL]

Without a URL, it asks http://127.0.0.1:8000. It prints, for each request, how many tokens of its prompt came from a
state and how many were read.
"""

import json
import sys
import time
import urllib.request
from typing import Any

SERVER = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
NUM_MESSAGES = 60
EDITED = 20
"""Number of the message that is edited: a third of the chat comes before it."""

PARAGRAPHS = 13
"""Paragraphs of a message, of some 50 tokens each with the demo model."""

type Messages = list[dict[str, str]]


def message(number: int) -> dict[str, str]:
    """Returns one message of the chat: a few pages of a ship's log, and every second one an answer."""
    lines = [
        f"Day {number}, watch {watch}. The boat went {number * watch % 90} miles to the north, the wind was cold, "
        f"and we saw {watch + number} birds. In the evening Anna told a story about the sea."
        for watch in range(1, PARAGRAPHS + 1)
    ]
    return {"role": "user" if number % 2 else "assistant", "content": "\n".join(lines)}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def ask(label: str, messages: Messages, **fields: object) -> str:
    """Sends a chat, prints a row of the table, and returns the first answer."""
    body = {"messages": messages, "temperature": 0, "max_tokens": 16, **fields}
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{SERVER}/v1/chat/completions", json.dumps(body).encode(), head)
    began = time.monotonic()
    with urllib.request.urlopen(request, timeout=3600) as response:
        answer: dict[str, Any] = json.load(response)
    seconds, usage = time.monotonic() - began, answer["usage"]
    total, restored = usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]
    print(f"{label:34} {total:8,} {restored:9,} {total - restored:8,} {seconds:8.2f}", flush=True)
    text: str = answer["choices"][0]["message"]["content"]
    return text


print(f"{'request':34} {'tokens':>8} {'restored':>9} {'read':>8} {'seconds':>8}")
log = [message(number) for number in range(1, NUM_MESSAGES + 1)]
question = user("What is the capital of Spain?")
answer = ask("the whole chat, and a question", [*log, question])
chat = [*log, question, {"role": "assistant", "content": answer}]
ask("another question", [*chat, user("What is 3 plus 4?")])

edited = [*log[: EDITED - 1], {**log[EDITED - 1], "content": "We stayed in the harbour."}, *log[EDITED:]]
ask(f"message {EDITED} of {NUM_MESSAGES} edited", [*edited, question])
ask("the chat as it was", [*chat, user("What is the opposite of cold?")])
ask("a fork after the question, 3 ways", [*log, question], n=3, temperature=1)
