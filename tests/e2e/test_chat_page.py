"""The chat page in a real browser, against a real server with the demo model."""

import json
import os
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import MISSING, Browser, browsing
from server_process import API_KEY, SHAPES, ServerProcess, serving

pytestmark = [pytest.mark.browser, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]

MODEL = "recurrentgemma-2b-it-with-a-rather-long-name"

ANSWERED = "document.querySelector('.assistant:last-child:not(.running) .body')?.innerText"
SENT = "JSON.parse(window.sent.at(-1))"
STORED_CHATS = """return new Promise((resolve) => { indexedDB.open('roost').onsuccess = ({target: {result}}) => {
  const reading = result.transaction('chats').objectStore('chats').getAll();
  reading.onsuccess = () => { result.close(); resolve(reading.result); };
} })"""

ENTER, ESCAPE, SHIFT, TAB = "\ue007", "\ue00c", "\ue008", "\ue004"

MARKDOWN = """# A heading

Some **bold** text, `code`, a [link](https://example.org/page) and ![a picture](https://example.org/x.png).

```python
def function_with_a_long_name(first_argument: int, second_argument: str = "a default value that is long") -> int:
    return first_argument + len(second_argument)
```

| Name | Size | A column with a long heading | Another one |
| --- | ---: | --- | --- |
| recurrentgemma-2b-it | 2 | something that goes on for quite a while | more |

1. one
2. two
   - [x] done

> A quotation.
"""

HOSTILE = """<script>window.pwned = 1</script> <img src=x onerror="window.pwned = 2"> <b id="talk" class="failed">b</b>

<iframe srcdoc="<script>parent.pwned = 3</script>"></iframe>

[a](javascript:window.pwned=4) [b](data:text/html,<script>window.pwned=5</script>) [c](  JaVaScRiPt:window.pwned=6)
![d](x" onerror="window.pwned=7) ![e](http://127.0.0.1:9/pixel.png) <javascript:window.pwned=8>

[f](https://example.org/"onmouseover="window.pwned=9) [g](/v1/models) [h]: javascript:alert(1)

```"><img src=x onerror=window.pwned=10>
</code></pre><script>window.pwned = 11</script>
```

<svg><style><!--</style><img src=x onerror=window.pwned=12>--></svg> <math><mtext></form><form><mglyph><style></math>

| <a href="javascript:window.pwned=13">x</a> |
| --- |
| <style>body { display: none }</style><form action="/x"><input name="text"></form> |
"""


@pytest.fixture(scope="module")
def demo() -> Iterator[ServerProcess]:
    with serving("demo", *SHAPES, "--served-model-name", MODEL, ROOST_API_KEY=API_KEY) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def other(demo: ServerProcess) -> Iterator[ServerProcess]:
    """Yields another server with the same model, which allows short answers only."""
    with serving("demo", *SHAPES, "--served-model-name", MODEL, "--max-tokens-limit", "9") as server:
        yield server


@pytest.fixture
def page(demo: ServerProcess, browser: Browser) -> Browser:
    """Yields the page as a user with the key sees it; sampling is greedy, so that outputs are known."""
    browser.screen(1280, 800)
    browser.emulate(prefers_color_scheme="light")
    enter(browser, demo)
    browser.complaints()
    return browser


def enter(page: Browser, server: ServerProcess) -> None:
    """Opens a server's page for the first time."""
    page.open(f"{server.url}/health")
    page.forget(server.url)
    page.script(
        "sessionStorage.clear(); "
        "sessionStorage.setItem('roost', arguments[0]); localStorage.setItem('roost-settings', arguments[1])",
        API_KEY,
        '{"temperature": "0"}',
    )
    reload(page, server)


def reload(page: Browser, demo: ServerProcess) -> None:
    """Loads the page, and records the bodies that it sends to the server."""
    page.open(f"{demo.url}/")
    page.until(f"document.getElementById('model').textContent === '{MODEL}'")
    page.script(
        "const real = fetch; window.sent = []; "
        "window.fetch = (url, how) => { if (how.body) window.sent.push(how.body); return real(url, how) }"
    )


def ask(page: Browser, text: str) -> str:
    page.type("#text", text + "\n")
    page.until("document.querySelector('.running') || document.querySelector('.assistant')")
    return page.until(ANSWERED)


def sent(page: Browser) -> dict[str, Any]:
    """Returns the body of the last request."""
    return page.script(f"return {SENT}")


def show(page: Browser, demo: ServerProcess, *contents: str) -> None:
    """Opens a conversation as earlier versions of the page stored it; its first message is a user's."""
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]
    page.script(
        "localStorage.setItem('roost-chat-shown', arguments[0]); sessionStorage.setItem('roost-open', 'shown')",
        json.dumps({"updated": 1, "messages": messages}),
    )
    reload(page, demo)


def stored(page: Browser) -> list[dict[str, Any]]:
    """Returns the conversations in the browser's database."""
    return page.script(STORED_CHATS)


def titles(page: Browser) -> list[str]:
    """Returns the titles in the list of chats."""
    return page.script(
        "return [...document.querySelectorAll('.chat span:first-child')].map((title) => title.textContent)"
    )


def pick(page: Browser, title: str, item: str) -> None:
    """Picks an item of a chat's menu."""
    page.click(f"[aria-label='More for “{title}”']")
    page.script(
        "[...document.querySelectorAll('#chats .menu:not([hidden]) button')]"
        ".find((button) => button.textContent === arguments[0]).click()",
        item,
    )


def downloaded(page: Browser, folder: Path, pattern: str) -> Path:
    """Waits for a download and returns its path."""
    deadline = time.monotonic() + 60
    while not (found := [path for path in folder.glob(pattern) if path.stat().st_size]):
        assert time.monotonic() < deadline, f"nothing was downloaded, {pattern}"
        time.sleep(0.02)
    return found[0]


def contents(page: Browser) -> list[str]:
    """Returns the messages of the last request."""
    return [message["content"] for message in sent(page)["messages"]]


def look(page: Browser, name: str) -> None:
    """Saves a screenshot if a folder is named, and lets axe-core look for barriers if its file is named."""
    if folder := os.environ.get("ROOST_SCREENSHOTS"):
        page.screenshot(Path(folder) / f"{name}.png")
    if file := os.environ.get("ROOST_AXE"):
        page.script(Path(file).read_text())
        findings = "violations.flatMap(({id, nodes}) => nodes.map((node) => `${id}: ${node.html}`))"
        found = page.script(f"return axe.run().then(({{violations}}) => {findings})")
        assert found == [], "\n".join(found)


def test_a_conversation(page: Browser) -> None:
    look(page, "welcome")
    page.click("#welcome li button")
    assert page.until(ANSWERED) == "The capital of Spain is Madrid."
    assert page.script("return document.getElementById('announcer').textContent").endswith("is Madrid.")
    assert ask(page, "And of France?") == "The capital of France is Paris."
    assert ask(page, "Tell me a story about a boat.")
    assert "tokens/s" in page.text(".assistant:last-child .facts")
    assert page.until("document.getElementById('slots-text').textContent").startswith("0 of ")
    page.click("#fresh")
    assert page.text("#welcome h2") == "Ask something"
    assert page.complaints() == []


CLICK_STOP = "document.getElementById('stop').click()"
PRESS_ESCAPE = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape', bubbles: true}))"


@pytest.mark.parametrize("stop", [CLICK_STOP, PRESS_ESCAPE], ids=["button", "Escape"])
def test_stop_frees_the_slot(page: Browser, demo: ServerProcess, stop: str) -> None:
    for _ in range(10):  # a generation may end before it is stopped
        page.click("#fresh")
        page.script("document.getElementById('temperature').value = 2")
        page.type("#text", "Tell me a story about a boat.\n")
        page.until("document.querySelector('.assistant .body')?.textContent.length > 5")
        if page.script(f"const ran = !document.getElementById('stop').hidden; {stop}; return ran"):
            break
    page.until("!document.querySelector('.running')")
    assert page.text(".assistant .facts").endswith("stopped")
    assert (
        page.script("return document.querySelector(\"[aria-label='Continue answer'] .name\").textContent") == "Continue"
    )
    page.until("document.getElementById('slots').value === 0")
    load = httpx.get(f"{demo.url}/load", headers={"x-api-key": API_KEY}, timeout=60).json()
    assert load["running"] == 0


VALUES = "['system', 'top-p', 'seed'].map((id) => document.getElementById(id).value)"


def test_each_chat_has_its_settings(page: Browser, demo: ServerProcess) -> None:
    assert ask(page, "Hello!") == "Hello! How can I help you today?"
    assert sent(page).keys() == {"messages", "temperature", "max_tokens", "stream", "stream_options"}, (
        "empty settings leave the server its defaults"
    )
    page.click("#open-settings")
    for selector, text in (("#system", "Be kind."), ("#top-p", "0.9"), ("#seed", "7")):
        page.type(selector, text)
    page.click("summary")
    more = {"top-k": 20, "min-p": 0.05, "presence-penalty": 0.1, "frequency-penalty": 0.2, "repetition-penalty": 1.1}
    for name, value in more.items():
        page.type(f"#{name}", str(value))
    page.type("#stop-strings", "Goodbye\n\nThe end")
    look(page, "settings")
    page.click("#settings .main")
    page.until("!document.getElementById('settings').open")
    assert ask(page, "Hello!")
    body = sent(page)
    assert body["messages"][0] == {"role": "system", "content": "Be kind."}
    assert (body["temperature"], body["top_p"], body["seed"], body["max_tokens"]) == (0, 0.9, 7, 4096)
    assert {name: body[name.replace("-", "_")] for name in more} == more
    assert body["stop"] == ["Goodbye", "The end"]
    page.click("#fresh")
    assert page.script(f"return {VALUES}") == ["", "", ""]
    page.click(".chat")
    assert page.script(f"return {VALUES}") == ["Be kind.", "0.9", "7"]
    reload(page, demo)
    assert page.script(f"return {VALUES}") == ["Be kind.", "0.9", "7"]


def test_settings_can_be_those_of_new_chats(page: Browser, demo: ServerProcess) -> None:
    page.click("#open-settings")
    page.type("#system", "Be kind.")
    page.click("#for-new")
    page.click("#settings .main")
    page.until("!document.getElementById('settings').open")
    reload(page, demo)
    ask(page, "Hello!")
    assert contents(page) == ["Be kind.", "Hello!"]


def test_settings_that_are_left_with_escape_are_valid(page: Browser) -> None:
    page.click("#open-settings")
    page.type("#top-p", "7")
    page.type("#seed", "5")
    page.press(ESCAPE)
    page.until("!document.getElementById('settings').open")
    assert ask(page, "Hello!")
    assert "top_p" not in sent(page)
    assert sent(page)["seed"] == 5


def test_an_error_is_shown_and_the_prompt_kept(page: Browser) -> None:
    page.script("document.getElementById('max-tokens').value = -1")
    page.type("#text", "hi\n")
    assert "max_tokens" in page.until("document.getElementById('error').textContent")
    assert page.text(".turn:last-child p") == "hi"
    page.script("document.getElementById('max-tokens').value = 20")
    page.click(".turn:last-child [aria-label='Try again to get an answer']")
    page.until(ANSWERED)
    assert page.script("return document.getElementById('error').hidden")
    assert contents(page) == ["hi"]


def test_without_the_server_it_says_so_and_keeps_the_prompt(page: Browser, demo: ServerProcess) -> None:
    page.offline(True)
    try:
        page.type("#text", "What is 2 + 3?\n")
        expected = "The server can't be reached; try again."
        assert page.until("document.getElementById('error').textContent") == expected
        assert page.script("return document.getElementById('error').getAttribute('role')") == "alert"
        look(page, "unreachable")
    finally:
        page.offline(False)
    reload(page, demo)
    page.click(".turn:last-child [aria-label='Try again to get an answer']")
    assert "5" in page.until(ANSWERED)


LOSE_STREAM = """
    const real = window.fetch, event = '{"choices": [{"delta": {"content": "Half an"}}]}';
    window.fetch = async (url, how) => {
      if (!url.endsWith('completions')) return real(url, how);
      window.fetch = real;
      return new Response(new Blob([`data: ${event}\\n\\n`]).stream());
    };
"""
"""Makes the stream of the next answer end without its last event."""


def test_a_lost_connection_keeps_what_has_come(page: Browser, demo: ServerProcess) -> None:
    """What the answer's end was survives a reload, after which it is continued."""
    page.script(LOSE_STREAM)
    page.type("#text", "hi\n")
    assert page.until("document.getElementById('error').textContent").startswith(
        "The connection to the server was lost"
    )
    assert page.script(f"return {ANSWERED}") == "Half an"
    reload(page, demo)
    assert page.text(".assistant .facts") == "lost before its end"
    page.click("[aria-label='Continue answer']")
    page.until("document.querySelector('.assistant:not(.running) .facts')?.textContent.includes('token')")
    assert contents(page) == ["hi", "Half an"]
    assert sent(page)["continue_final_message"] is True
    assert page.script(f"return {ANSWERED}").startswith("Half an")
    assert page.script("return document.querySelectorAll('.turn').length") == 2


def test_without_the_key_it_is_asked_for(page: Browser, demo: ServerProcess) -> None:
    """A wrong one is said to be wrong where it was given."""
    page.script("sessionStorage.clear()")
    page.open(f"{demo.url}/")
    page.until("document.getElementById('settings').open")
    assert page.script("return document.activeElement.id") == "key"
    assert page.text("#key-problem") == "The server wants a key."
    page.script("document.getElementById('key').value = ''")
    page.type("#key", "wrong" + ENTER)
    page.until("document.getElementById('key-problem').textContent === 'The server refuses this key.'")
    look(page, "wrong-key")
    assert page.script("return document.getElementById('settings').open && document.activeElement.id") == "key"
    page.script("document.getElementById('key').value = ''")
    page.type("#key", API_KEY)
    page.click("#settings .main")
    page.until(f"document.getElementById('model').textContent === '{MODEL}'")


def test_history_survives_a_reload(page: Browser, demo: ServerProcess) -> None:
    ask(page, "What is the capital of Spain?")
    page.click("#fresh")
    ask(page, "Hello!")
    reload(page, demo)
    assert page.script(f"return {ANSWERED}") == "Hello! How can I help you today?"
    assert ask(page, "What is the capital of Italy?") == "The capital of Italy is Rome."
    assert len(sent(page)["messages"]) == 3, "the conversation goes on"
    look(page, "sidebar")
    assert titles(page) == ["Hello!", "What is the capital of Spain?"]
    page.click("#chats li:last-child .chat")
    assert page.script(f"return {ANSWERED}") == "The capital of Spain is Madrid."
    assert API_KEY not in page.script("return JSON.stringify(localStorage)"), "the key stays in the tab"


def test_each_chat_has_an_address(page: Browser, demo: ServerProcess) -> None:
    """One can go back to it, bookmark it, and open it in another tab."""
    ask(page, "What is the capital of Spain?")
    first = page.script("return location.href")
    page.click("#fresh")
    assert page.script("return location.hash") == "#/"
    ask(page, "Hello!")
    page.script("history.go(-1)")
    page.until(f"{ANSWERED} === 'The capital of Spain is Madrid.'")
    assert page.script("return location.href") == first
    page.script("history.go(1)")
    page.until(f"{ANSWERED}?.startsWith('Hello!')")
    ours, other = page.tab(), page.new_tab()
    page.show_tab(other)
    page.open(first)
    page.until(f"{ANSWERED} === 'The capital of Spain is Madrid.'")
    page.script("location.hash = '#/chat/none'")
    page.until("document.getElementById('error').textContent === 'This chat is not in this browser.'")
    assert page.script("return document.getElementById('talk').hidden")
    page.close_tab()
    page.show_tab(ours)


def test_drafts_survive_a_reload(page: Browser, demo: ServerProcess) -> None:
    """Each chat has its own; what is typed while an answer comes stays, and why is said."""
    ask(page, "Hello!")
    page.script(HOLD_STREAM)
    page.type("#text", "Tell me a story.\n")
    page.until("document.querySelector('.running .body')?.innerText.length > 5")
    page.type("#text", "And then?\n")
    assert page.until("document.getElementById('error').textContent").startswith("An answer is still coming")
    page.click("#stop")
    page.until(SETTLED)
    page.click("#fresh")
    assert page.script("return document.getElementById('text').value") == ""
    page.type("#text", "Another one")
    page.click(".chat")
    assert page.script("return document.getElementById('text').value") == "And then?"
    reload(page, demo)
    assert page.script("return document.getElementById('text').value") == "And then?"
    page.click("#fresh")
    assert page.script("return document.getElementById('text').value") == "Another one"


QUESTIONS = ["What is the capital of Spain?", "Hello!", "What is 2 + 3?"]


def ask_questions(page: Browser) -> None:
    """Asks each question in a chat of its own."""
    for question in QUESTIONS:
        page.click("#fresh")
        ask(page, question)


def test_chats_are_deleted_with_undo(page: Browser, demo: ServerProcess) -> None:
    ask_questions(page)
    pick(page, QUESTIONS[2], "Delete")
    assert titles(page) == ["Hello!", "What is the capital of Spain?"]
    assert page.script("return document.getElementById('talk').hidden"), "the one that was open is gone"
    assert len(stored(page)) == 2
    assert page.text("#undo-text") == "Deleted “What is 2 + 3?”"
    look(page, "undo")
    page.click("#undo-do")
    assert titles(page) == QUESTIONS[::-1]
    assert "5" in page.until(ANSWERED)
    page.click("#delete-all")
    assert stored(page) == []
    assert page.text("#no-chats") == "No chats yet."
    page.click("#undo-do")
    assert len(stored(page)) == 3
    reload(page, demo)
    assert titles(page) == QUESTIONS[::-1]


def test_chats_are_searched_and_renamed(page: Browser, demo: ServerProcess) -> None:
    ask_questions(page)
    page.type("#search", "madrid")
    assert titles(page) == [QUESTIONS[0]]
    assert "Madrid" in page.text(".chat span:last-child"), "the words are shown where they were found"
    pick(page, QUESTIONS[0], "Rename")
    page.press("Spain" + ENTER)
    assert titles(page) == ["Spain"]
    page.click("#undo-do")
    assert titles(page) == [QUESTIONS[0]]
    pick(page, QUESTIONS[0], "Rename")
    page.press("Spain" + ENTER)
    pick(page, "Spain", "Rename")
    page.press("Portugal" + ESCAPE)
    assert titles(page) == ["Spain"]
    assert not page.script("return document.getElementById('undo').hidden")
    page.click(".chat:not([aria-current])")
    assert page.script("return document.getElementById('undo').hidden"), "another chat is shown"
    reload(page, demo)
    assert titles(page) == [*QUESTIONS[:0:-1], "Spain"]
    page.type("#search", "lisbon")
    assert page.text("#no-chats") == "No chat has these words."


TRICKY = "One\n\n<!-- user -->\n\\<!-- assistant -->\n# Two"


@pytest.mark.parametrize("kind", ["Markdown", "JSON"])
def test_chats_are_exported_and_imported(page: Browser, demo: ServerProcess, tmp_path: Path, kind: str) -> None:
    """JSON has all branches, Markdown the one that is shown; text that looks like a mark stays what it is."""
    page.download_to(tmp_path)
    show(page, demo, "Tell me. ¿Sí?", TRICKY, "Hello!", "Hi.")
    page.click(".assistant:last-child [aria-label='Regenerate answer']")
    page.until(f"{ANSWERED}?.startsWith('Hello!')")
    pick(page, "Tell me. ¿Sí?", kind)
    file = downloaded(page, tmp_path, "Tell-me-Sí.md" if kind == "Markdown" else "Tell-me-Sí.json")
    page.click("#delete-all")
    page.type("#import-files", str(file))
    page.until("document.querySelectorAll('.turn').length === 4")
    (chat,) = stored(page)
    assert [turn["content"] for turn in chat["turns"]][:3] == ["Tell me. ¿Sí?", TRICKY, "Hello!"]
    assert len(chat["turns"]) == (4 if kind == "Markdown" else 5)
    assert page.script(f"return {ANSWERED}").startswith("Hello!")
    assert page.text("#undo-text") == "Imported a chat"
    page.type("#import-files", str(file))
    page.until("document.getElementById('error').textContent === '“Tell me. ¿Sí?” is already here.'")
    assert len(stored(page)) == 1


def test_all_chats_are_exported_at_once(page: Browser, tmp_path: Path) -> None:
    page.download_to(tmp_path)
    ask_questions(page)
    page.click("#export-all")
    file = downloaded(page, tmp_path, "chats.json")
    page.click("#delete-all")
    page.type("#import-files", str(file))
    page.until("document.querySelectorAll('.chat').length === 3")
    assert titles(page) == QUESTIONS[::-1]


MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]


def test_openais_messages_are_imported(page: Browser, tmp_path: Path) -> None:
    file = tmp_path / "messages.json"
    file.write_text(json.dumps({"model": "any", "messages": MESSAGES}))
    page.type("#import-files", str(file))
    page.until("document.querySelectorAll('.turn').length === 1")
    assert stored(page)[0]["settings"] == {"system": "Be kind."}


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "{}", '{"chats": [{"turns": [{"id": "a", "parent": "b"}]}]}', '{"chats": {}}']
)
def test_other_files_are_refused(page: Browser, tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text or " ")
    page.type("#import-files", str(tmp_path / "a.json"))
    expected = "a.json holds no conversation: take a JSON or Markdown file that this page wrote."
    assert page.until("document.getElementById('error').textContent") == expected
    assert stored(page) == []


STRANGE = {
    "turns": [
        {"id": "a", "parent": "", "role": "user", "content": "hi", "request": 1},
        {"id": "b", "parent": "a", "role": "assistant", "content": "Hi.", "end": "toString", "rate": "1", "usage": {}},
    ],
    "title": 1,
    "settings": {"system": {}, "seed": "7"},
    "shown": {"": 1},
    "state": {"id": "state_0"},
}
"""A chat with fields of types that the page does not write."""


def test_strange_fields_of_a_file_are_left_out(page: Browser, demo: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"chats": [STRANGE]}))
    page.type("#import-files", str(tmp_path / "a.json"))
    page.until(f"{TURNS} === 2")
    reload(page, demo)
    assert page.script(f"return {ANSWERED}") == "Hi."
    (chat,) = stored(page)
    assert chat["settings"] == {"seed": "7"}
    assert set(chat["turns"][1]) == {"id", "parent", "role", "content", "end"}
    assert page.text(".origin") == "From a saved state of 0 tokens. Its text can’t be shown."
    assert page.complaints() == []


def test_the_list_is_where_there_is_room(page: Browser, demo: ServerProcess) -> None:
    """On a wide screen it is beside the conversation unless it was closed; on a phone it opens above."""
    assert page.script("return document.getElementById('sidebar').matches(':not(:modal)[open]')")
    page.click("#close-sidebar")
    reload(page, demo)
    assert not page.script("return document.getElementById('sidebar').open")
    page.screen(390, 844)
    ask(page, "Hello!")
    page.click("#fresh")
    page.click("#open-sidebar")
    assert page.script("return document.getElementById('sidebar').matches(':modal')")
    page.click(".chat")
    assert page.until(ANSWERED).startswith("Hello!")
    assert not page.script("return document.getElementById('sidebar').open")
    assert page.script("return document.getElementById('open-sidebar').ariaExpanded") == "false"


def test_full_storage_is_said_and_costs_nothing(page: Browser, demo: ServerProcess) -> None:
    page.limit_storage(demo.url, 1)
    try:
        reload(page, demo)
        ask(page, "Hello!")
        page.until("document.getElementById('error').textContent.startsWith('The browser has no room')")
        assert ask(page, "What is the capital of Spain?"), "the conversation goes on"
        assert contents(page)[0] == "Hello!"
    finally:
        page.limit_storage(demo.url, None)


@pytest.mark.parametrize("stored", ["{", "null", "[]", '{"messages": "x"}', '{"messages": [{"role": "user"}]}'])
def test_broken_history_is_ignored(page: Browser, demo: ServerProcess, stored: str) -> None:
    page.script("localStorage.setItem('roost-chat-x', arguments[0]); sessionStorage.setItem('roost-open', 'x')", stored)
    reload(page, demo)
    assert page.text("#no-chats") == "No chats yet."
    assert page.complaints() == []


def test_a_prompt_without_an_answer_can_be_asked_again(page: Browser, demo: ServerProcess) -> None:
    show(page, demo, "Hello!", "Hi.", "What is 2 + 3?")
    page.click(".turn:last-child [aria-label='Try again to get an answer']")
    page.until("document.querySelectorAll('.assistant:not(.running)').length === 2")
    assert [message["role"] for message in sent(page)["messages"]] == ["user", "assistant", "user"]


def test_an_answer_that_was_cut_goes_on(page: Browser, demo: ServerProcess) -> None:
    page.script("document.getElementById('max-tokens').value = 5")
    cut = ask(page, "Tell me a story about a boat.")
    assert page.text(".assistant .facts").endswith("cut at the limit")
    reload(page, demo)
    assert page.text(".assistant .facts").endswith("cut at the limit")
    page.click("[aria-label='Continue answer']")
    page.until(f"{ANSWERED}?.length > {len(cut)}")
    assert contents(page) == ["Tell me a story about a boat.", cut]
    assert page.script(f"return {ANSWERED}").startswith(cut)
    assert page.script("return document.querySelector('[aria-label=\"Continue answer\"]')") is None, "it has ended"


def test_what_has_come_survives_leaving_the_page(page: Browser, demo: ServerProcess) -> None:
    """The answer had no time to end, or to be stored."""
    page.script("""
        const real = window.fetch, event = '{"choices": [{"delta": {"content": "Half an"}}]}';
        const bytes = new TextEncoder().encode(`data: ${event}\\n\\n`);
        const endless = new ReadableStream({start: (stream) => stream.enqueue(bytes)});
        window.fetch = async (url, how) => url.endsWith('completions') ? new Response(endless) : real(url, how);
    """)
    page.type("#text", "hi\n")
    page.until("document.querySelector('.running .body')?.innerText === 'Half an'")
    reload(page, demo)
    assert page.script(f"return {ANSWERED}") == "Half an"
    assert page.text(".assistant .facts") == "lost before its end"


BUSY_DATABASE = """
    indexedDB.open('roost').onsuccess = ({target: {result}}) => {
      const store = result.transaction('chats', 'readwrite').objectStore('chats');
      const keep = () => { store.count().onsuccess = keep; window.isBusy = true; };
      keep();
    };
"""
"""Keeps the page's writes waiting for as long as the page is shown."""


def test_what_was_not_written_survives_leaving_the_page(page: Browser, demo: ServerProcess) -> None:
    ask(page, "Hello!")
    page.until("document.activeElement.id === 'text'")
    assert len(stored(page)) == 1
    page.script(BUSY_DATABASE)
    page.until("window.isBusy")
    page.click("#fresh")
    assert ask(page, "What is the capital of Spain?") == "The capital of Spain is Madrid."
    pick(page, "Hello!", "Delete")
    reload(page, demo)
    assert page.script(f"return {ANSWERED}") == "The capital of Spain is Madrid."
    assert "lost" not in page.text(".assistant .facts")
    assert titles(page) == ["What is the capital of Spain?"]
    assert len(stored(page)) == 1


def test_editing_makes_a_branch(page: Browser, demo: ServerProcess) -> None:
    ask(page, "What is the capital of Spain?")
    ask(page, "Hello!")
    page.click(".user:first-child [aria-label='Edit message']")
    page.press(" Or not?" + ESCAPE)
    assert page.text(".user:first-child p") == "What is the capital of Spain?"
    page.click(".user:first-child [aria-label='Edit message']")
    page.script("document.activeElement.value = 'What is the capital of Japan?'")
    look(page, "edit")
    page.press(ENTER)
    page.until(f"document.querySelectorAll('.turn').length === 2 && {ANSWERED}")
    assert page.script(f"return {ANSWERED}") == "The capital of Japan is Tokyo."
    assert contents(page) == ["What is the capital of Japan?"]
    assert page.text(".user .count") == "2/2"
    page.click(".user [aria-label='Previous version']")
    texts = ["What is the capital of Spain?", "The capital of Spain is Madrid.", "Hello!"]
    shown = "[...document.querySelectorAll('.turn')].map((turn) => turn.querySelector('.plain, .body').innerText)"
    assert page.script(f"return {shown}")[:3] == texts, "the old branch is whole"
    assert page.script("return document.activeElement.ariaLabel") == "Next version", "the other arrow ends here"
    reload(page, demo)
    assert page.script(f"return {shown}")[:3] == texts, "the branch that was shown is shown again"
    ask(page, "And of France?")
    assert contents(page)[0] == texts[0]


def test_regenerating_makes_a_branch(page: Browser, demo: ServerProcess) -> None:
    show(page, demo, "Hello!", "Hi.", "What is the capital of Spain?", "No idea.")
    page.click(".assistant:last-child [aria-label='Regenerate answer']")
    page.until(f"{ANSWERED}?.includes('Madrid')")
    assert contents(page) == ["Hello!", "Hi.", "What is the capital of Spain?"]
    page.offline(True)
    try:
        page.click(".assistant:last-child [aria-label='Regenerate answer']")
        page.until("!document.getElementById('error').hidden")
    finally:
        page.offline(False)
    assert "Madrid" in page.script(f"return {ANSWERED}"), "without a new answer, the last one stays"
    assert page.text(".assistant:last-child .count") == "2/2"
    page.click(".assistant:last-child [aria-label='Previous version']")
    assert page.script(f"return {ANSWERED}") == "No idea."
    page.click(".assistant:nth-child(2) [aria-label='Regenerate answer']")
    page.until(f"document.querySelectorAll('.turn').length === 2 && {ANSWERED}")
    assert contents(page) == ["Hello!"]
    page.click(".assistant [aria-label='Previous version']")
    assert page.script(f"return {ANSWERED}") == "No idea."


def test_tabs_keep_each_others_branches(page: Browser, demo: ServerProcess) -> None:
    """A page that wrote an older copy of a conversation keeps the turns that another one has added since."""
    show(page, demo, "Hello!", "Hi.")
    page.script("""
        const opening = indexedDB.open('roost');
        return new Promise((resolve) => { opening.onsuccess = () => {
          const store = opening.result.transaction('chats', 'readwrite').objectStore('chats');
          store.get('shown').onsuccess = ({target: {result: chat}}) => {
            chat.turns.push({...chat.turns[1], id: 'other', content: 'Hi from the other tab.'});
            store.put(chat).onsuccess = () => { opening.result.close(); resolve(); };
          };
        } });
    """)
    ask(page, "What is 2 + 3?")
    page.until("document.activeElement.id === 'text'")
    reload(page, demo)
    page.click(".assistant:nth-child(2) [aria-label='Next version']")
    assert page.script(f"return {ANSWERED}") == "Hi from the other tab."


FEED_STREAM = """
    const real = window.fetch, encoder = new TextEncoder();
    window.feed = (content, finish_reason = null) => {
      const event = JSON.stringify({choices: [{delta: {content}, finish_reason}]});
      window.out.enqueue(encoder.encode(`data: ${event}\\n\\n`));
      if (!finish_reason) return;
      window.out.enqueue(encoder.encode('data: [DONE]\\n\\n'));
      window.out.close();
    };
    window.fetch = async (url, how) => url.endsWith('completions')
      ? new Response(new ReadableStream({ start: (out) => { window.out = out; } })) : real(url, how);
"""
"""Gives answers that come as the test feeds them."""


def test_tabs_change_only_what_they_change(page: Browser, demo: ServerProcess) -> None:
    """An answer ends, and its chat gets a name, while another tab writes an older copy of both."""
    page.script(FEED_STREAM)
    page.type("#text", "Tell me a story.\n")
    page.until("window.out")
    ours, other = page.tab(), page.new_tab()
    while len(stored(page)[0]["turns"]) < 2:  # what has come is stored once a second
        page.script("window.feed('Half ')")
    page.show_tab(other)
    try:
        page.open(f"{demo.url}/health")
        page.script("sessionStorage.setItem('roost', arguments[0])", API_KEY)
        reload(page, demo)
        page.click(".chat")
        page.script(FEED_STREAM)
        page.type("#text", "Another message.\n")
        page.until("window.out")
        page.show_tab(ours)
        page.script("window.feed('an answer.', 'stop')")
        page.until("!document.querySelector('.running')")
        pick(page, "Tell me a story.", "Rename")
        page.press("A name" + ENTER)
        page.show_tab(other)
        page.until("document.querySelector('.chat span').textContent === 'A name'")
        page.script("window.feed('Yes.', 'stop')")
        page.until(f"{ANSWERED} === 'Yes.'")
        page.show_tab(ours)
        page.until(f"{ANSWERED} === 'Yes.'")
        (chat,) = stored(page)
        assert chat["title"] == "A name"
        story, message, answer = chat["turns"][1:]
        assert (story["content"][-15:], story["end"]) == ("Half an answer.", "stop")
        assert (message["content"], answer["content"], answer["end"]) == ("Another message.", "Yes.", "stop")
        page.show_tab(other)
        assert page.text(".assistant:nth-child(2) .body").endswith("Half an answer."), "this tab shows it, too"
    finally:
        page.show_tab(other)
        page.close_tab()
        page.show_tab(ours)


def test_markdown_is_shown(page: Browser, demo: ServerProcess) -> None:
    show(page, demo, "hi", MARKDOWN)
    assert page.text(".body h1") == "A heading"
    assert page.text(".body strong") == "bold"
    assert page.text(".code .frame-head span") == "python"
    assert page.text(".code pre").startswith("def function_with_a_long_name(")
    assert page.text(".body td:nth-child(2)") == "2"
    assert page.text(".body li li") == "☑ done"
    links = (
        "[...document.querySelectorAll('.body a')].map((link) => [link.textContent, link.href, link.target, link.rel])"
    )
    assert page.script(f"return {links}") == [
        ["link", "https://example.org/page", "_blank", "noopener noreferrer"],
        ["a picture", "https://example.org/x.png", "_blank", "noopener noreferrer"],
    ]
    assert page.complaints() == []


FORMULAS = r"""Euler: $e^{i\pi} = -1$, and \(a \le b\). It costs $5 or $6, and `$x$` is code.

$$
\int_0^1 x^2 \, dx = \frac{1}{3}
$$

\[ \mathscr{L} = \sum_{n=1}^{100} n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n \]

This is none: $\nothing{$, $$ $$ and \( \).
"""

LOADED = "performance.getEntriesByType('resource').map((entry) => entry.name.split('/').at(-1))"


def test_formulas_are_shown(page: Browser, demo: ServerProcess) -> None:
    """Temml and its font are loaded with the first one."""
    show(page, demo, "hi", MARKDOWN)
    assert not {"temml.mjs", "Temml-Local.css"} & set(page.script(f"return {LOADED}"))
    show(page, demo, "hi", FORMULAS)
    page.until("document.querySelectorAll('.body math').length === 4")
    assert page.script("return document.querySelectorAll('.display-formula math[display=block]').length") == 2
    assert page.text(".body > div:first-child").endswith("It costs $5 or $6, and $x$ is code.")
    page.until(f"{LOADED}.includes('Temml.woff2')")
    look(page, "formulas")
    page.screen(390, 844)
    assert_fits(page, "formulas-390")
    assert page.complaints() == []


HOSTILE_FORMULAS = r"""$\href{javascript:window.pwned=1}{a}$ $\includegraphics{http://127.0.0.1:9/x.png}$

$\id{talk}{b}$ $\style{color:red}{c}$

$$\begin{equation} x \label{talk} \end{equation} \ref{talk}$$ $\text{<img src=x onerror=window.pwned=2>}$

$\def\a{\a\a}\a$ $\rule{9999em}{9999em}$ $</code><img src=x onerror=window.pwned=3>$

```formula
<img src=x onerror=window.pwned=4>
```
"""


def test_hostile_formulas_are_harmless(page: Browser, demo: ServerProcess) -> None:
    show(page, demo, "hi", HOSTILE_FORMULAS + "\n\n$x$")
    page.until("document.querySelector('.body > div:last-child math')")
    assert page.script("return window.pwned") is None
    forbidden = "script, img, [onerror], [id], [href]"
    found = "document.querySelector('#talk').querySelector(arguments[0])?.outerHTML"
    assert page.script(f"return {found}", forbidden) is None
    assert page.script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert page.complaints() == []


def test_code_has_colours(page: Browser, demo: ServerProcess) -> None:
    """Highlight.js is loaded with the first code whose language is named; the text stays what it was."""
    show(page, demo, "hi", "```\nreturn 1\n```")
    assert "highlight.min.js" not in page.script(f"return {LOADED}")
    show(page, demo, "hi", "```js\nreturn '<img src=x onerror=pwned=1>'\n```\n\n```unknown\nreturn 1\n```")
    page.until("document.querySelector('.hljs-keyword')?.textContent === 'return'")
    assert page.script("return document.querySelector('.code code').textContent.trim()") == (
        "return '<img src=x onerror=pwned=1>'"
    )
    assert page.script("return document.querySelectorAll('.code')[1].querySelector('code span[class]')") is None
    assert page.complaints() == []


@pytest.mark.parametrize("has_clipboard", [True, False], ids=["secure", "plain HTTP"])
def test_answers_and_code_can_be_copied(page: Browser, demo: ServerProcess, has_clipboard: bool) -> None:
    show(page, demo, "A message.", MARKDOWN)
    page.allow("clipboardReadWrite", "clipboardSanitizedWrite")
    page.script("window.pasted = () => clipboard.readText().then((text) => { window.copied = text })")
    page.script("window.clipboard = navigator.clipboard")
    if not has_clipboard:
        page.script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    code = MARKDOWN.partition("```python\n")[2].partition("```")[0]
    for selector, expected in ((".user", "A message."), (".code", code.rstrip()), (".assistant > .foot", MARKDOWN)):
        page.click(f"{selector} .tool")
        page.until("document.getElementById('announcer').textContent === 'Copied'")
        page.script("window.copied = null; window.pasted(); document.getElementById('announcer').textContent = ''")
        assert page.until("window.copied").strip() == expected.strip()


def test_hostile_output_is_harmless(page: Browser, demo: ServerProcess) -> None:
    show(page, demo, HOSTILE, HOSTILE)
    assert page.script("return window.pwned") is None
    forbidden = "script, img, iframe, svg:not(.tool > svg), math, style, form, input, object, [onerror], [style], [id]"
    assert (
        page.script("return document.querySelector('#talk').querySelector(arguments[0])?.outerHTML", forbidden) is None
    )
    links = page.script("return [...document.querySelectorAll('.body a[href]')].map((link) => link.protocol)")
    assert set(links) <= {"http:", "https:"}
    local = "[...document.querySelectorAll('.body a')].filter((link) => link.host === location.host).length"
    assert page.script(f"return {local}") == 0
    assert "<script>window.pwned = 1</script>" in page.text(".body"), "HTML is shown as text"
    elsewhere = "performance.getEntriesByType('resource').filter((entry) => !entry.name.startsWith(location.origin))"
    assert page.script(f"return {elsewhere}.filter((entry) => !entry.name.startsWith('data:')).length") == 0
    assert page.complaints() == []


@pytest.mark.parametrize(
    "text",
    [
        "> " * 20_000,
        "- " * 5_000,
        "[" * 50_000,
        "*a " * 30_000,
        "`" * 50_001 + "a",
        "<a " * 30_000,
        "| a " * 20_000,
        "x" * 300_000,
        "a $" * 30_000,
        "\\(" * 50_000,
    ],
    ids=["quotes", "lists", "brackets", "stars", "ticks", "tags", "cells", "long", "dollars", "formulas"],
)
def test_text_that_is_hard_to_parse_is_shown(page: Browser, demo: ServerProcess, text: str) -> None:
    """The page responds afterwards; the driver limits how long it may take."""
    show(page, demo, "hi", "Begin.\n\n" + text + "\n\nEnd.")
    shown = page.script("return document.querySelector('.assistant .body').textContent")
    assert shown.startswith("Begin.")
    assert shown.rstrip().endswith("End.")


def test_growing_text_keeps_its_finished_blocks(page: Browser) -> None:
    """A selection in finished blocks survives the rest of the output."""
    page.script("""
        const markdown = document.querySelector('script').src.replace('app.js', 'markdown.js');
        import(markdown).then(({MarkdownView}) => {
          const element = document.createElement('div'), view = new MarkdownView(element);
          view.show('One [link].\\n\\nTwo');
          const [first, second] = element.children;
          view.show('One [link].\\n\\nTwo and more.\\n\\n```\\ncode');
          const kept = [element.children[0] === first, element.children[1] === second, element.children.length];
          view.show('One [link].\\n\\nTwo and more.\\n\\n[link]: https://example.org');
          window.result = [...kept, element.querySelector('a')?.href];
        });
    """)
    assert page.until("window.result") == [True, False, 3, "https://example.org/"]


def test_the_browser_refuses_what_the_policy_forbids(page: Browser) -> None:
    """Nothing is loaded or run even if the sanitizer should fail."""
    refused = page.script("""
        window.refused = [];
        document.addEventListener('securitypolicyviolation', (event) => refused.push(event.effectiveDirective));
        try { document.body.innerHTML = '<b>x</b>' } catch (error) { refused.push(error.name) }
        const image = document.body.appendChild(document.createElement('img'));
        image.src = location.href + 'x.png';
        document.body.setAttribute('style', 'color: red');
        return window.refused;
    """)
    assert "TypeError" in refused
    page.until("['require-trusted-types-for', 'img-src', 'style-src-attr'].every((name) => refused.includes(name))")
    page.complaints()


def test_the_keyboard_does_everything(page: Browser) -> None:
    assert page.script("return document.activeElement.id") == "text"
    page.press(f"Hello!{SHIFT}{ENTER}{SHIFT}")
    assert page.script("return document.getElementById('text').value") == "Hello!\n"
    page.press(ENTER)
    page.until(ANSWERED)
    assert page.script("return document.activeElement.id") == "text"
    page.script("document.getElementById('fresh').focus()")
    order = []
    for _ in range(13):
        page.press(TAB)
        focused = "const focused = document.activeElement"
        order.append(page.script(f"{focused}; return focused.id || focused.ariaLabel || focused.textContent"))
        outlined = "#box" if order[-1] == "text" else ":focus"
        style = page.script(f"return getComputedStyle(document.querySelector('{outlined}'))['outline-style']")
        assert style == "solid", order
    page_controls = ["open-settings", "open-keys", "scroll"]
    fork = "Fork from here, into a new chat"
    message_controls = ["Copy message", "Edit message", fork]
    again = ["Regenerate answer", "Three more answers, side by side"]
    turn_controls = [*message_controls, "Copy answer", *again, fork, "Save state after this answer"]
    assert [*order[:-2], order[-1]] == [*page_controls, *turn_controls, "text"]
    assert "tokens restored from a state" in order[-2]
    page.press(f"{SHIFT}{TAB}{TAB}{SHIFT}")
    names = "[...document.querySelectorAll('#talk .name')].filter((name) => name.checkVisibility())"
    assert page.script(f"return {names}.map((name) => name.textContent)") == ["Save state"], "the focused tool's"


CONTROL = "\ue009"


def test_keys_open_what_one_needs(page: Browser) -> None:
    """They edit the last message, search, begin a chat, stop, and say which keys there are."""
    ask(page, "Hello!")
    page.press("?")
    assert not page.script("return document.getElementById('keys').open"), "in a message it is a character"
    page.press("\ue003\ue013")
    assert page.script("return document.activeElement.ariaLabel") == "Edited message"
    page.press(ESCAPE)
    page.press("?")
    assert page.text("#keys-title") == "Keys"
    look(page, "keys")
    page.press(f"{CONTROL}k{CONTROL}{ESCAPE}")
    page.press(f"{CONTROL}k{CONTROL}")
    assert page.script("return document.activeElement.id") == "search"
    page.press(f"{CONTROL}{SHIFT}o{SHIFT}{CONTROL}")
    assert page.text("#welcome h2") == "Ask something"
    assert page.script("return document.activeElement.id") == "text"


def test_one_sees_what_was_restored(page: Browser, demo: ServerProcess) -> None:
    """Below an answer, with what that means, and what a saved state takes."""
    show(page, demo, "The boat went north. " * 400, "Yes.")
    ask(page, "Hello!")
    ask(page, "What is the capital of Spain?")
    restored, read = (
        int(number.replace(",", ""))
        for number in page.script(
            "return /([\\d,]+) tokens restored from a state, ([\\d,]+) read/"
            ".exec(document.querySelector('.turn:last-child .facts').textContent).slice(1)"
        )
    )
    assert restored > 2000
    assert 0 < read < 200
    page.click(".turn:last-child .facts .link")
    assert page.script("return document.querySelectorAll('#about p').length") == 5
    look(page, "about")
    page.press(ESCAPE)
    page.click("#load")
    assert page.text("#about-title") == "What has been read is not read again"
    page.press(ESCAPE)
    page.click(".turn:last-child [aria-label^='Save state']")
    page.text(".turn:last-child [aria-label^='Download state']")
    assert ", the same at any length, under “Saved states”" in page.text(".turn:last-child .facts")
    look(page, "saved")


def test_everything_has_a_name(page: Browser, demo: ServerProcess) -> None:
    """Every control has an accessible name."""
    show(page, demo, "hi", MARKDOWN)
    nameless = page.script(
        "return [...document.querySelectorAll('button, input, textarea, meter, dialog, [tabindex], article')]"
        ".filter((control) => !(control.labels?.length || control.getAttribute('aria-label') "
        "|| control.getAttribute('aria-labelledby') || control.matches('button') && control.textContent.trim()))"
        ".map((control) => control.outerHTML)"
    )
    assert nameless == []
    live = "['announcer', 'talk'].map((id) => document.getElementById(id).getAttribute('aria-live'))"
    assert page.script(f"return {live}") == ["polite", "off"]


CONTRAST = """
    const channels = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = (color) => {
      const linear = (c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
      const [r, g, b] = channels(color).map((c) => linear(c / 255));
      return .2126 * r + .7152 * g + .0722 * b;
    };
    const ground = (element) => {
      for (let at = element; at; at = at.parentElement) {
        const color = getComputedStyle(at).backgroundColor;
        if (channels(color)[3] !== 0) return color;
      }
    };
    const low = [];
    for (const element of document.querySelectorAll('body *')) {
      const ownText = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
      if (!ownText || !element.checkVisibility()) continue;
      const [one, other] = [light(getComputedStyle(element).color), light(ground(element))];
      const ratio = (Math.max(one, other) + .05) / (Math.min(one, other) + .05);
      if (ratio < 4.5) low.push(`${ratio.toFixed(2)} ${element.outerHTML.slice(0, 80)}`);
    }
    return low;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(page: Browser, demo: ServerProcess, scheme: str) -> None:
    """Contrast is at least 4.5 to 1, level AA of WCAG for text of any size."""
    page.emulate(prefers_color_scheme=scheme)
    show(page, demo, "hi", MARKDOWN + '```js\n// all\nconst f = (a) => new Map([["b", 1.5, null, /x/]]);\n```')
    page.until("document.querySelectorAll('.code .hljs-keyword').length > 2")
    page.script(
        "document.getElementById('error').textContent = 'wrong'; document.getElementById('error').hidden = false"
    )
    assert page.script(CONTRAST) == []
    page.click(".more")
    page.click("#open-settings")
    assert page.script(CONTRAST) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844), (320, 600)])
def test_it_fits(page: Browser, demo: ServerProcess, scheme: str, width: int, height: int) -> None:
    page.screen(width, height)
    page.emulate(prefers_color_scheme=scheme)
    show(page, demo, "A word of great length: " + "x" * 300, MARKDOWN + "\n\n" + "y" * 300)
    assert_fits(page, f"answer-{scheme}-{width}")
    for name in ("settings", "sidebar") if width < 960 else ("settings",):
        page.click(f"#open-{name}")
        assert_fits(page, f"{name}-{scheme}-{width}")
        page.press(ESCAPE)
    page.click("#fresh")
    ask(page, "Tell me a story about a boat.")
    page.click(".user [aria-label='Edit message']")
    assert_fits(page, f"talk-{scheme}-{width}")
    assert page.complaints() == []


HOLD_STREAM = """
    const real = window.fetch;
    window.fetch = async (url, how) => {
      if (!url.endsWith('completions')) return real(url, how);
      window.fetch = real;
      const response = await real(url, how);
      return new Response(new ReadableStream({ async start(out) {
        how.signal.addEventListener('abort', () => out.error(how.signal.reason));
        const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
        let text = '';
        while (text.split('\\n\\n').length < 9) text += (await reader.read()).value;
        out.enqueue(new TextEncoder().encode(text.split('\\n\\n').slice(0, 8).join('\\n\\n') + '\\n\\n'));
      } }));
    };
"""
"""Holds the next answer after some tokens, until it is stopped."""

HOLD_TEXT = HOLD_STREAM.replace("length < 9", "length < 2").replace("slice(0, 8)", "slice(0, 1)")
"""Holds the next answer before its text."""


def test_reading_a_prompt_shows_its_progress(page: Browser) -> None:
    """The server counts what it reads, which the page asks for every second."""
    page.until("document.getElementById('slots-text').textContent")
    page.script(HOLD_TEXT)
    page.type("#text", "What is the capital of Spain?\n")
    note = "document.querySelector('.running .facts').textContent"
    shown = page.until(f"{note}.match(/^Reading the prompt: (\\d+) of (\\d+) tokens$/)")
    assert 0 <= int(shown[1]) <= int(shown[2])
    page.until(f"(([, read, all]) => read === all)({note}.match(/(\\d+) of (\\d+)/))")
    page.click("#stop")
    page.until("!document.querySelector('.running')")


def test_long_messages_are_folded(page: Browser, demo: ServerProcess) -> None:
    long = "\n".join(f"line {number}" for number in range(1000))
    show(page, demo, long, "Hi.", "short", "Hi.")
    assert page.text(".user p").endswith("line 7…")
    unfold = ".user [aria-expanded=false]"
    assert page.text(unfold) == f"Show all {len(long):,} characters"
    look(page, "folded")
    page.click(unfold)
    assert page.script("return document.querySelector('.user p').textContent") == long
    page.click(".user [aria-expanded=true]")
    assert page.text(".user p").endswith("line 7…")
    assert page.script("return document.querySelectorAll('.user [aria-expanded]').length") == 1


def test_the_end_is_one_click_away(page: Browser, demo: ServerProcess) -> None:
    """Also while an answer arrives, which does not move what is read above it."""
    show(page, demo, *["A message.", "word\n\n" * 100] * 2)
    assert page.script("return document.getElementById('to-end').hidden")
    page.script(HOLD_STREAM)
    page.type("#text", "Tell me a story.\n")
    page.until("document.querySelector('.running .body')?.innerText.length > 5")
    page.script("document.getElementById('scroll').scrollTop = 0")
    page.until("!document.getElementById('to-end').hidden")
    look(page, "to-end")
    page.click("#to-end")
    page.until("document.getElementById('to-end').hidden")
    page.click("#stop")
    page.until(SETTLED)


def test_text_runs_in_its_own_direction(page: Browser, demo: ServerProcess) -> None:
    show(page, demo, "שלום עולם", "Hello.\n\nمرحبا بالعالم\n\n- שלום\n\n```\ncode\n```")
    direction = "(selector) => getComputedStyle(document.querySelector(selector)).direction"
    selectors = [".user p", ".body > div:nth-child(1) p", ".body > div:nth-child(2) p", ".body ul", ".body .code"]
    assert page.script(f"return arguments[0].map({direction})", selectors) == ["rtl", "ltr", "rtl", "rtl", "ltr"]
    look(page, "right-to-left")


TARGETS = """
    return [...document.querySelectorAll('button, input, textarea, summary, label:has([type=checkbox])')]
      .filter((element) => element.checkVisibility({visibilityProperty: true}) && element.type !== 'checkbox')
      .map((element) => [element.getBoundingClientRect(), element.outerHTML])
      .filter(([{width, height}]) => width < 44 || height < 44)
      .map(([{width, height}, html]) => `${width} x ${height}: ${html.slice(0, 90)}`)
"""


def test_a_finger_hits_everything(page: Browser, demo: ServerProcess) -> None:
    """On a phone, targets are 44 pixels wide and high, and slots are words."""
    page.screen(390, 844)
    show(page, demo, "hi " * 1000, MARKDOWN)
    tools = "[...document.querySelectorAll('.turn .tool')].filter((tool) => tool.checkVisibility())"
    assert page.script(f"return {tools}.every((tool) => tool.querySelector('.name').checkVisibility())")
    page.click("[aria-label='Edit message']")
    assert page.script(TARGETS) == []
    for name in ("settings", "sidebar"):
        page.click(f"#open-{name}")
        if name == "sidebar":
            page.click(".more")
        assert page.script(TARGETS) == []
        page.press(ESCAPE)
    assert page.text("#slots-text") == "0 of 4 slots"
    assert not page.script("return document.getElementById('slots').checkVisibility()")


TURNS = "document.querySelectorAll('.turn').length"
SETTLED = "document.querySelector('.turn:last-child:is(.assistant):not(.running) .tools')"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_chat_that_one_keeps(
    page: Browser, demo: ServerProcess, other: ServerProcess, tmp_path: Path, scheme: str, width: int
) -> None:
    """Three turns, a branch, stop, continue, reload, fork, and the fork on another server."""
    page.screen(width, 844)
    page.emulate(prefers_color_scheme=scheme)
    page.download_to(tmp_path)
    for number, question in enumerate(("My name is Theo.", "What is the capital of Spain?", "Tell me a story."), 1):
        page.type("#text", question + "\n")
        page.until(f"{TURNS} === {2 * number} && {SETTLED}")
    page.click(".user:first-child [aria-label='Edit message']")
    page.press(" And yours?" + ENTER)
    page.until(f"{TURNS} === 2 && {SETTLED}")
    page.click(".user [aria-label='Previous version']")
    assert page.script(f"return {TURNS}") == 6

    page.script(HOLD_STREAM)
    page.click(".assistant:last-child [aria-label='Regenerate answer']")
    page.until("document.querySelector('.running .body')?.innerText.length > 5")
    page.click("#stop")
    page.until(SETTLED)
    stopped = page.script(f"return {ANSWERED}")
    assert page.text(".assistant:last-child .facts").endswith("stopped")
    assert page.text(".assistant:last-child .count") == "2/2"
    assert_fits(page, f"stopped-{scheme}-{width}")
    page.click("[aria-label='Continue answer']")
    page.until(f"{SETTLED} && !document.querySelector('.turn:last-child .facts').innerText.endsWith('stopped')")
    whole = page.script(f"return {ANSWERED}")
    assert whole.startswith(stopped)
    assert len(whole) > len(stopped)
    facts = page.text(".assistant:last-child .facts")
    assert "first after" in facts
    assert "in this chat" in facts
    reload(page, demo)
    assert page.script(f"return {ANSWERED}") == whole
    assert page.text(".assistant:last-child .facts") == facts

    page.click(".assistant:nth-child(2) [aria-label^='Fork']")
    assert page.script(f"return {TURNS}") == 2
    assert len(stored(page)) == 2
    page.click("[aria-label^='Save state']")
    page.click("[aria-label^='Download state']")
    file = downloaded(page, tmp_path, "Fork-My-name-is-Theo.state")
    if width < 960:
        page.click("#open-sidebar")
    page.click("#open-states")
    assert page.text("#states-list span") == "Fork: My name is Theo."
    assert_fits(page, f"states-{scheme}-{width}")
    assert page.complaints() == []

    enter(page, other)
    page.type("#import-files", str(file))
    assert page.text(".origin").endswith("Other versions of its messages are not in the state.")
    assert page.text("#undo-text") == "Imported a chat"
    page.type("#text", "What is my name?\n")
    page.until(f"{TURNS} === 4 && {SETTLED}")
    assert page.script("return document.getElementById('undo').hidden"), "the chat goes on"
    assert contents(page) == ["What is my name?"], "the state has all else"
    assert titles(page) == ["Fork My name is Theo"] or width < 960
    assert sent(page)["from_state"].startswith("state_")
    assert sent(page)["max_tokens"] == 9
    assert_fits(page, f"state-opened-{scheme}-{width}")
    assert page.complaints() == []


DROP = """
    const bytes = Uint8Array.from(atob(arguments[0]), (character) => character.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], arguments[1]));
    for (const name of ["dragover", "drop"]) {
      document.body.dispatchEvent(new DragEvent(name, { dataTransfer: data, bubbles: true, cancelable: true }));
      if (name === "dragover") window.wasShown = document.body.matches(".dropping");
    }
"""
SHOWN_TEXTS = (
    "[...document.querySelectorAll('.turn')].map((turn) => turn.querySelector('.plain, .body').innerText.trim())"
)


def test_a_moved_chat_has_every_message(
    page: Browser, demo: ServerProcess, other: ServerProcess, tmp_path: Path
) -> None:
    """200 turns in a file that is dropped on another server's page. It goes on after the state is gone there, too."""
    page.download_to(tmp_path)
    names = [text for number in range(99) for text in (f"My name is {number}. <b>", f"Nice to meet you, {number}!")]
    show(page, demo, *names)
    assert ask(page, "What is the capital of Spain?") == "The capital of Spain is Madrid."
    page.click(".turn:last-child [aria-label^='Save state']")
    page.click(".turn:last-child [aria-label^='Download state']")
    file = downloaded(page, tmp_path, "My-name-is-0-b.state")
    texts = page.script(f"return {SHOWN_TEXTS}")
    assert texts[:198] == names

    enter(page, other)
    page.script(DROP, b64encode(file.read_bytes()).decode(), "My-name-is-0-b (1).state")
    page.until(f"{TURNS} === 200")
    assert page.script("return wasShown && !document.body.matches('.dropping')")
    assert page.script(f"return {SHOWN_TEXTS}") == texts
    assert titles(page) == ["My name is 0. <b>"]
    look(page, "moved")
    for question, num_sent in (("And of France?", 1), ("And of Italy?", 3)):
        page.type("#text", question + "\n")
        page.until(f"document.querySelectorAll('.turn').length === {200 + num_sent + 1} && {SETTLED}")
        assert len(contents(page)) == num_sent
    state_id = sent(page)["from_state"]
    reload(page, other)
    assert page.script(f"return {TURNS}") == 204
    assert page.complaints() == []
    httpx.delete(f"{other.url}/v1/states/{state_id}", timeout=60).raise_for_status()
    assert ask(page, "And of Japan?")
    page.until(f"{TURNS} === 206 && {SETTLED}")
    assert contents(page)[:199] == texts[:199]


def test_a_state_that_is_no_chat_goes_on_without_text(page: Browser, demo: ServerProcess, tmp_path: Path) -> None:
    with httpx.Client(base_url=demo.url, timeout=60, headers={"x-api-key": API_KEY}) as client:
        completion = client.post("/v1/completions", json={"prompt": "Once upon a time", "max_tokens": 4}).json()
        state = client.post("/v1/states", json={"request_id": completion["id"]}).json()
        (tmp_path / "boat.state").write_bytes(client.get(f"/v1/states/{state['id']}/export").content)
    page.type("#import-files", str(tmp_path / "boat.state"))
    assert page.text(".origin") == f"From a saved state of {state['tokens']} tokens. Its text can’t be shown."
    assert titles(page) == ["boat"]
    assert ask(page, "What is 2 + 3?")
    assert (contents(page), sent(page)["from_state"][:6]) == (["What is 2 + 3?"], "state_")
    (tmp_path / "broken.state").write_bytes(b"none")
    page.type("#import-files", str(tmp_path / "broken.state"))
    assert "the file is no whole state file" in page.until("document.getElementById('error').textContent")


PICKS = "document.querySelectorAll('.beside .pick').length"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_three_answers_side_by_side(page: Browser, demo: ServerProcess, width: int, scheme: str) -> None:
    """From one prompt, in columns; another tab picks one, and the chat goes on with it."""
    page.screen(width, 844)
    page.emulate(prefers_color_scheme=scheme)
    page.script(
        "for (const [id, value] of [['temperature', 0.5], ['seed', 11]]) document.getElementById(id).value = value"
    )
    ask(page, "My name is Theo.")
    page.type("#text", "Tell me a story about a boat.")
    page.click("[aria-label='Three answers, side by side']")
    page.until(f"{PICKS} === 3")
    assert sent(page)["n"] == 3
    texts = page.script(f"return {SHOWN_TEXTS}")
    assert len(set(texts[3:])) == 3
    boxes = page.script(
        "return [...document.querySelectorAll('.beside .turn')].map((turn) => turn.getBoundingClientRect())"
    )
    assert len({box["top"] for box in boxes}) == 1
    lefts = [box["left"] for box in boxes]
    assert lefts == sorted(lefts)
    assert lefts[2 if width == 1280 else 1] < width, "all three, or the beginning of the second"
    assert_fits(page, f"three-{scheme}-{width}")
    page.type("#text", "What is my name?\n")
    assert page.until("document.getElementById('error').textContent") == "Pick the answer to go on with first."

    first, second = page.tab(), page.new_tab()
    page.show_tab(second)
    page.open(f"{demo.url}/health")
    page.script("sessionStorage.setItem('roost', arguments[0])", API_KEY)
    reload(page, demo)
    page.script("document.querySelector('.chat, #open-sidebar').click(); document.querySelector('.chat')?.click()")
    page.until(f"{PICKS} === 3")
    page.script("document.querySelectorAll('.pick')[1].click()")
    page.until(f"{TURNS} === 4")
    assert page.text(".assistant:last-child .count") == "2/3"
    page.close_tab()
    page.show_tab(first)
    page.until(f"{TURNS} === 4")
    page.type("#text", ENTER)
    page.until(f"{TURNS} === 6 && {SETTLED}")
    assert [text.split() for text in contents(page)] == [
        text.split() for text in (*texts[:3], texts[4], "What is my name?")
    ]
    page.click("[aria-label='Three answers, side by side']")
    page.until(f"{PICKS} === 3")
    assert len(contents(page)) == 5, "without a text, the last message is answered"
    page.script("document.querySelectorAll('.pick')[2].scrollIntoView(); document.querySelectorAll('.pick')[2].click()")
    assert page.text(".assistant:last-child .count") == "4/4"
    assert page.complaints() == []


def test_states_are_deleted_with_undo(page: Browser) -> None:
    ask(page, "My name is Theo.")
    page.click("[aria-label^='Save state']")
    page.text("[aria-label^='Download state']")
    page.click("#open-states")
    count = page.until("document.querySelectorAll('#states-list li').length")
    page.click("#states-list [aria-label^='Delete']")
    page.until(f"document.querySelectorAll('#states-list li').length === {count - 1}")
    page.click("#undo-do")
    page.until(f"document.querySelectorAll('#states-list li').length === {count}")
    page.click("#states-list [aria-label^='Delete']")
    page.until("document.getElementById('undo').hidden", seconds=20)
    listing = f"fetch('v1/states', {{headers: {{'x-api-key': '{API_KEY}'}}}}).then((response) => response.json())"
    page.until(f"{listing}.then(({{data}}) => data.length === {count - 1})")


def assert_fits(page: Browser, name: str) -> None:
    """Only code and tables scroll horizontally, once the page has its size."""
    look(page, name)
    page.until("document.documentElement.scrollWidth <= window.innerWidth")
    wide = page.script(
        "return [...document.querySelectorAll('main, dialog[open], header, #ask, .turn')]"
        ".filter((element) => element.scrollWidth > element.clientWidth).map((element) => element.outerHTML)"
    )
    assert wide == []
