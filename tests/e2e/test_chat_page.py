"""The chat page in a real browser, against a real server with the demo model."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browser import MISSING, Browser, browsing
from server_process import API_KEY, ServerProcess, serving

pytestmark = [pytest.mark.browser, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]

ANSWERED = "document.querySelector('.assistant:last-child:not(.running) p')?.textContent"


@pytest.fixture(scope="module")
def demo() -> Iterator[ServerProcess]:
    with serving("demo", ROOST_API_KEY=API_KEY) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def page(demo: ServerProcess, browser: Browser) -> Browser:
    """The page as somebody sees it who knows the key; greedy, so that answers are known."""
    browser.open(f"{demo.url}/")
    browser.script(
        "sessionStorage.setItem('roost', arguments[0]); localStorage.setItem('roost', arguments[1])",
        API_KEY,
        '{"temperature": "0"}',
    )
    browser.open(f"{demo.url}/")
    browser.until("document.getElementById('model').textContent === 'demo'")
    browser.complaints()
    return browser


def ask(page: Browser, text: str) -> str:
    page.type("#text", text + "\n")
    answer: str = page.until(ANSWERED)
    return answer


def shoot(page: Browser, name: str) -> None:
    """Keeps a picture if a folder for them is named."""
    if folder := os.environ.get("ROOST_SCREENSHOTS"):
        page.screenshot(Path(folder) / f"{name}.png")


def test_a_conversation(page: Browser) -> None:
    page.resize(1100, 800)
    page.emulate(prefers_color_scheme="light")
    shoot(page, "welcome")
    page.click("#welcome li button")
    assert page.until(ANSWERED) == "The capital of Spain is Madrid."
    assert ask(page, "And of France?") == "The capital of France is Paris."
    assert "tokens/s" in page.text(".assistant:last-child .quiet")
    assert page.until("document.getElementById('slots-text').textContent").startswith("0 of ")
    page.click("#fresh")
    assert page.text("#welcome h2") == "Ask something"
    assert page.complaints() == []


def test_stop_frees_the_slot(page: Browser, demo: ServerProcess) -> None:
    page.script("document.getElementById('max-tokens').value = ''; document.getElementById('temperature').value = 2")
    for _ in range(10):  # an answer may be over before it is stopped
        page.click("#fresh")
        page.type("#text", "Tell me a story about a boat.\n")
        page.until("document.querySelector('.assistant p')?.textContent.length > 5")
        if page.script("const stop = document.getElementById('stop'), ran = !stop.hidden; stop.click(); return ran"):
            break
    page.until("!document.querySelector('.running')")
    assert page.text(".assistant .quiet").endswith("stopped")
    page.until("document.getElementById('slots').value === 0")
    load = httpx.get(f"{demo.url}/load", headers={"x-api-key": API_KEY}).json()
    assert load["running"] == 0


def test_settings_are_used_and_remembered(page: Browser, demo: ServerProcess) -> None:
    page.script("const real = fetch; window.fetch = (url, how) => { window.sent ??= how.body; return real(url, how) }")
    page.click("#open-settings")
    page.type("#system", "Be kind.")
    shoot(page, "settings")
    page.click("#settings .main")
    assert ask(page, "Hello!") == "Hello! How can I help you today?"
    body = json.loads(page.script("return window.sent"))
    assert (body["messages"][0], body["temperature"]) == ({"role": "system", "content": "Be kind."}, 0)
    page.open(f"{demo.url}/")
    assert page.script("return document.getElementById('system').value") == "Be kind."


def test_an_error_is_shown(page: Browser) -> None:
    page.script("document.getElementById('max-tokens').value = -1")
    page.type("#text", "hi\n")
    assert "max_tokens" in page.until("document.querySelector('.failed')?.textContent")


def test_without_the_key_it_is_asked_for(page: Browser, demo: ServerProcess) -> None:
    page.script("sessionStorage.clear()")
    page.open(f"{demo.url}/")
    page.until("document.getElementById('settings').open")
    page.type("#key", API_KEY)
    page.click("#settings .main")
    page.until("document.getElementById('model').textContent === 'demo'")


def test_everything_has_a_name(page: Browser) -> None:
    """Every control, for those who do not see it."""
    nameless = page.script(
        "return [...document.querySelectorAll('button, input, textarea, meter')].filter((control) => "
        "!(control.labels?.length || control.getAttribute('aria-label') || control.textContent.trim()))"
        ".map((control) => control.outerHTML)"
    )
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1100, 800), (500, 850)])
def test_it_fits(page: Browser, scheme: str, width: int, height: int) -> None:
    page.resize(width, height)
    page.emulate(prefers_color_scheme=scheme)
    for question in ("What is the capital of Japan?", "Hello!", "Tell me a story about a boat."):
        ask(page, question)
    shoot(page, f"talk-{scheme}-{width}")
    assert page.script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert page.complaints() == []
