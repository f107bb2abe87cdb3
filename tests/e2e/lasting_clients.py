"""Clients that repeat what is refused or cut off, as the documentation says, and note what they got."""

import itertools
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

NUM_CASES = 4
"""Number of different requests of each kind; those of even numbers are greedy, the others have a seed."""

NUM_TOKENS = 300
NUM_LINES = 24
ENDED = ("completed", "incomplete", "failed", "cancelled")


@dataclass
class Traffic:
    """What all clients share.

    Attributes:
      url: Address of the proxy.
      key: API key of new requests.
      is_over: Set when clients end after their present work.
      texts: Different texts of each kind and case.
      kept: Path and body of what the server promised to keep.
      counts: Number of pieces of work that have ended, by kind.
      refusals: Number of refused requests, by status and code.
      cuts: Number of connections that broke, by kind.
      longest_s: Longest time without any sign of progress that a client had, by kind.
    """

    url: str
    key: str
    is_over: threading.Event = field(default_factory=threading.Event)
    texts: defaultdict[tuple[str, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    kept: dict[str, bytes] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    cuts: Counter[str] = field(default_factory=Counter)
    longest_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, counter: Counter[str], name: str) -> None:
        """Adds one. Threads may call it."""
        with self._lock:
            counter[name] += 1


class Client:
    """A client, to be closed, that does work of one kind, piece after piece. Each request goes to any replica.

    Args:
      traffic: Receives what the client sees.
      kind: Key of `KINDS`.
    """

    def __init__(self, traffic: Traffic, kind: str) -> None:
        self.traffic = traffic
        self._kind = kind
        self._http = httpx.Client(base_url=traffic.url, timeout=120)
        self._numbers = itertools.count()
        self._heard_at = time.monotonic()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def run(self) -> None:
        """Works until the traffic is over."""
        for number in itertools.takewhile(lambda _: not self.traffic.is_over.is_set(), itertools.count()):
            case = number % NUM_CASES
            self.traffic.texts[self._kind, case].add(KINDS[self._kind](self, case))
            self.traffic.count(self.traffic.counts, self._kind)

    def send(self, method: str, path: str, **fields: Any) -> httpx.Response:
        """Sends a request until it is served, and returns its response."""
        while True:
            try:
                response = self._http.request(method, path, headers=self._headers(), **fields)
            except httpx.TransportError:
                self._cut()
                continue
            if response.status_code == 200:
                self._hear()
                return response
            self._wait(response)

    def events(self, method: str, path: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """Yields the events of a stream until it ends, is cut off or is refused."""
        try:
            with self._http.stream(method, path, headers=self._headers(), **fields) as response:
                if response.status_code != 200:
                    response.read()
                    self._wait(response)
                    return
                for line in response.iter_lines():
                    if line.startswith("data: {"):
                        self._hear()
                        yield json.loads(line.removeprefix("data: "))
        except httpx.TransportError:
            self._cut()

    def keep(self, path: str) -> None:
        """Notes what the server returns now for a path, which must stay so."""
        self.traffic.kept[path] = self.send("GET", path).content

    def _headers(self) -> dict[str, str]:
        session = f"{id(self)} {next(self._numbers)}"
        return {"authorization": f"Bearer {self.traffic.key}", "x-session-id": session}

    def _hear(self) -> None:
        now, longest_s = time.monotonic(), self.traffic.longest_s
        longest_s[self._kind] = max(longest_s[self._kind], now - self._heard_at)
        self._heard_at = now

    def _cut(self) -> None:
        self.traffic.count(self.traffic.cuts, self._kind)
        time.sleep(0.1)

    def _wait(self, response: httpx.Response) -> None:
        """Waits as long as a refusal asks for. An upload, which the proxy does not buffer, is cut off by a death."""
        if response.status_code == 502 and response.request.url.path == "/v1/files":
            self._cut()
            return
        shown = f"{response.request.method} {response.request.url.path}: {response.status_code} {response.text[:200]}"
        assert response.status_code in (429, 503), shown
        assert "retry-after" in response.headers, shown
        code = response.json()["error"]["code"]
        self.traffic.count(self.traffic.refusals, f"{response.status_code} {code}")
        time.sleep(float(response.headers["retry-after"]))


def sampling(case: int) -> dict[str, Any]:
    return {"seed": case} if case % 2 else {"temperature": 0}


def body(case: int) -> dict[str, Any]:
    """Returns a request for a response."""
    prompt = f"Tell me a story about {case} boats."
    return {"input": prompt, "ignore_eos": True, "max_output_tokens": NUM_TOKENS, **sampling(case)}


def chat_body(case: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Tell me about {case} bears."}]
    return {"messages": messages, "ignore_eos": True, "max_tokens": 60, **sampling(case)}


def lines(case: int) -> bytes:
    """Returns a file of requests."""
    bodies = (
        {"prompt": f"{case} and {n}", "max_tokens": 12, "ignore_eos": True, **sampling(n)} for n in range(NUM_LINES)
    )
    named = (
        {"custom_id": f"{n}", "method": "POST", "url": "/v1/completions", "body": each} for n, each in enumerate(bodies)
    )
    return b"".join(orjson.dumps(each, option=orjson.OPT_APPEND_NEWLINE) for each in named)


def text_of(response: dict[str, Any]) -> str:
    assert response["status"] == "incomplete", response
    assert response["usage"]["output_tokens"] == NUM_TOKENS
    return str(response["output"][0]["content"][0]["text"])


def chat(client: Client, case: int) -> str:
    """A chat whose answer comes at once."""
    reply = client.send("POST", "/v1/chat/completions", json=chat_body(case)).json()
    return str(reply["choices"][0]["message"]["content"])


def chat_stream(client: Client, case: int) -> str:
    """A streamed chat, which begins again where it was cut off."""
    while True:
        choices = [
            each["choices"][0]
            for each in client.events("POST", "/v1/chat/completions", json={**chat_body(case), "stream": True})
            if each.get("choices")
        ]
        if choices and choices[-1]["finish_reason"]:
            return "".join(each["delta"].get("content") or "" for each in choices)


def follow(client: Client, case: int) -> str:
    """A background stream, followed across cuts. No event may be missing or repeated."""
    request: dict[str, Any] = {"json": {**body(case), "background": True, "stream": True}}
    method, path, seen = "POST", "/v1/responses", list[dict[str, Any]]()
    while not seen or seen[-1]["type"] not in ("response.incomplete", "response.completed", "response.failed"):
        seen += [each for each in client.events(method, path, **request) if each["type"] != "error"]
        if seen:
            place = f"/v1/responses/{seen[0]['response']['id']}"
            method, path, request = "GET", f"{place}?stream=true&starting_after={seen[-1]['sequence_number']}", {}
    assert [each["sequence_number"] for each in seen] == list(range(len(seen)))
    text = "".join(each["delta"] for each in seen if each["type"] == "response.output_text.delta")
    client.keep(place)
    assert text == text_of(json.loads(client.traffic.kept[place]))
    return text


def poll(client: Client, case: int) -> str:
    """A background response that is asked for until it has ended."""
    made = client.send("POST", "/v1/responses", json={**body(case), "background": True}).json()
    place = f"/v1/responses/{made['id']}"
    while client.send("GET", place).json()["status"] not in ENDED:
        time.sleep(0.2)
    client.keep(place)
    return text_of(json.loads(client.traffic.kept[place]))


def batch(client: Client, case: int) -> str:
    """A batch, each of whose lines has one text."""
    form = {"files": {"file": ("in.jsonl", lines(case))}, "data": {"purpose": "batch"}}
    file = client.send("POST", "/v1/files", **form).json()
    wanted = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    made = client.send("POST", "/v1/batches", json=wanted).json()
    while (found := client.send("GET", f"/v1/batches/{made['id']}").json())["status"] not in ENDED:
        time.sleep(0.2)
    assert found["request_counts"] == {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}
    place = f"/v1/files/{found['output_file_id']}/content"
    client.keep(place)
    rows = [json.loads(each) for each in client.traffic.kept[place].splitlines()]
    assert [each["custom_id"] for each in rows] == [str(number) for number in range(NUM_LINES)]
    return json.dumps([each["response"]["body"]["choices"][0]["text"] for each in rows])


KINDS: dict[str, Callable[[Client, int], str]] = {
    "chat": chat,
    "chat stream": chat_stream,
    "followed stream": follow,
    "background response": poll,
    "batch": batch,
}
