"""A real browser on pages of other sites, and what they can do to a server on this machine: nothing."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from browser import MISSING, Browser, browsing
from server_process import SIMULATED, ServerProcess, serving, until

pytestmark = [pytest.mark.browser, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]

ATTACKS = """
const [server, done] = [arguments[0], arguments[1]];
const form = (field, value, name) => {
  const data = new FormData();
  data.append("purpose", "batch");
  data.append(field, new Blob([value]), name);
  return data;
};
const post = (path, body) => fetch(server + path, {method: "POST", mode: "no-cors", body});
const chat = JSON.stringify({messages: [{role: "user", content: "a"}], max_tokens: 1});
const line = JSON.stringify({custom_id: "a", method: "POST", url: "/v1/chat/completions", body: JSON.parse(chat)});
const outcomes = [
  post("/v1/states/import", new Blob(["state"])),
  post("/v1/files", form("file", line + "\\n", "in.jsonl")),
  post("/v1/chat/completions", chat),
  post("/v1/responses", JSON.stringify({input: "a", background: true})),
  post("/v1/batches", JSON.stringify({input_file_id: "file_x", endpoint: "/v1/chat/completions"})),
  post("/abort_request", JSON.stringify({abort_all: true})),
  fetch(server + "/health_generate", {mode: "no-cors"}),
  fetch(server + "/v1/files/file_x", {method: "DELETE"}),
];
navigator.sendBeacon(server + "/v1/completions", new Blob([JSON.stringify({prompt: "a"})]));
Promise.allSettled(outcomes).then((settled) => done(settled.filter(({status}) => status === "fulfilled").length));
"""
"""Sends what a page can send without being asked; its answers are opaque, so that the server's log tells of them."""

POST_JSON = """
const options = {method: "POST", headers: {"content-type": "application/json"}, body: arguments[0]};
fetch("v1/completions", options).then((answer) => answer.json()).then(({error}) => arguments[1](error?.message));
"""

NUM_ANSWERED = 7
"""Requests of `ATTACKS` with an opaque answer: six posts and `/health_generate`. The preflight of DELETE fails."""

NUM_LOGGED = 7
"""Requests of `ATTACKS` with a line in the log: six posts and the beacon. That of a probe is written at debug level."""


@pytest.fixture(scope="module")
def server(tiny_config: Path) -> Iterator[ServerProcess]:
    with serving(f"random:{tiny_config}", *SIMULATED) as process:
        yield process


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@contextmanager
def foreign_page(host: str, folder: Path) -> Iterator[str]:
    """Serves an empty page on another port; yields its address."""
    (folder / "index.html").write_text("<!doctype html><title>another site</title>")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        yield f"http://{host}:{site.server_port}/index.html"
        site.shutdown()
        thread.join()


def lines_with(server: ServerProcess, text: str) -> list[str]:
    return [line for line in server.log.read_text().splitlines() if text in line]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "site.localhost"])
def test_a_page_of_another_site_changes_nothing(
    server: ServerProcess, browser: Browser, tmp_path: Path, host: str
) -> None:
    """Also one on another port of this machine, which the browser counts as the same site."""
    before = len(lines_with(server, " 403 "))
    with foreign_page(host, tmp_path) as address:
        browser.open(address)
        assert browser.script_until_done(ATTACKS, server.url) == NUM_ANSWERED
        until(lambda: len(lines_with(server, " 403 ")) == before + NUM_LOGGED)
    assert not lines_with(server, "POST /v1/chat/completions 200")
    for path in ("/v1/states", "/v1/files", "/v1/batches"):
        assert httpx.get(f"{server.url}{path}", timeout=60).json()["data"] == []


def test_a_link_from_another_site_opens_the_chat_page_which_may_send(
    server: ServerProcess, browser: Browser, tmp_path: Path
) -> None:
    with foreign_page("localhost", tmp_path) as address:
        browser.open(address)
        browser.script("location.href = arguments[0]", f"{server.url}/")
        browser.until("document.getElementById('model')?.textContent !== ''")
    body = '{"prompt": [5], "max_tokens": 1}'
    assert browser.script_until_done(POST_JSON, body) is None
