"""The chat page in a real browser, against a real server with the demo model."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import MISSING, Browser, browsing
from server_process import API_KEY, ServerProcess, serving

pytestmark = [pytest.mark.browser, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]

MODEL = "recurrentgemma-2b-it-with-a-rather-long-name"

ANSWERED = "document.querySelector('.assistant:last-child:not(.running) .body')?.innerText"
SENT = "JSON.parse(window.sent.at(-1))"
STORED_CHATS = "Object.keys(localStorage).filter((key) => key.startsWith('roost-chat-')).length"

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
    with serving("demo", "--served-model-name", MODEL, ROOST_API_KEY=API_KEY) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def page(demo: ServerProcess, browser: Browser) -> Browser:
    """Yields the page as a user with the key sees it; sampling is greedy, so that outputs are known."""
    browser.screen(1280, 800)
    browser.emulate(prefers_color_scheme="light")
    browser.open(f"{demo.url}/")
    browser.script(
        "localStorage.clear(); sessionStorage.clear(); "
        "sessionStorage.setItem('roost', arguments[0]); localStorage.setItem('roost', arguments[1])",
        API_KEY,
        '{"temperature": "0"}',
    )
    reload(browser, demo)
    browser.complaints()
    return browser


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
    answer: str = page.until(ANSWERED)
    return answer


def sent(page: Browser) -> dict[str, Any]:
    """Returns the body of the last request."""
    body: dict[str, Any] = page.script(f"return {SENT}")
    return body


def show(page: Browser, demo: ServerProcess, *contents: str) -> None:
    """Opens a stored conversation by its first message, a user's."""
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]
    page.script(
        "localStorage.setItem('roost-chat-shown', arguments[0]); sessionStorage.setItem('roost-open', 'shown')",
        json.dumps({"updated": 1, "messages": messages}),
    )
    reload(page, demo)


def shoot(page: Browser, name: str) -> None:
    """Saves a screenshot if a folder for screenshots is set."""
    if folder := os.environ.get("ROOST_SCREENSHOTS"):
        page.screenshot(Path(folder) / f"{name}.png")


def test_a_conversation(page: Browser) -> None:
    shoot(page, "welcome")
    page.click("#welcome li button")
    assert page.until(ANSWERED) == "The capital of Spain is Madrid."
    assert page.script("return document.getElementById('announcer').textContent").endswith("is Madrid.")
    assert ask(page, "And of France?") == "The capital of France is Paris."
    assert ask(page, "Tell me a story about a boat.")
    assert "tokens/s" in page.text(".assistant:last-child .note")
    assert page.until("document.getElementById('slots-text').textContent").startswith("0 of ")
    page.click("#fresh")
    assert page.text("#welcome h2") == "Ask something"
    assert page.complaints() == []


CLICK_STOP = "document.getElementById('stop').click()"
PRESS_ESCAPE = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape', bubbles: true}))"


@pytest.mark.parametrize("stop", [CLICK_STOP, PRESS_ESCAPE], ids=["button", "Escape"])
def test_stop_frees_the_slot(page: Browser, demo: ServerProcess, stop: str) -> None:
    page.script("document.getElementById('max-tokens').value = ''; document.getElementById('temperature').value = 2")
    for _ in range(10):  # a generation may end before it is stopped
        page.click("#fresh")
        page.type("#text", "Tell me a story about a boat.\n")
        page.until("document.querySelector('.assistant .body')?.textContent.length > 5")
        if page.script(f"const ran = !document.getElementById('stop').hidden; {stop}; return ran"):
            break
    page.until("!document.querySelector('.running')")
    assert page.text(".assistant .note").endswith("stopped")
    page.until("document.getElementById('slots').value === 0")
    load = httpx.get(f"{demo.url}/load", headers={"x-api-key": API_KEY}).json()
    assert load["running"] == 0


def test_settings_are_used_and_remembered(page: Browser, demo: ServerProcess) -> None:
    assert ask(page, "Hello!") == "Hello! How can I help you today?"
    assert not {"top_p", "seed"} & sent(page).keys(), "empty settings leave the server its defaults"
    page.click("#open-settings")
    for selector, text in (("#system", "Be kind."), ("#top-p", "0.9"), ("#seed", "7")):
        page.type(selector, text)
    shoot(page, "settings")
    page.click("#settings .main")
    page.click("#fresh")
    assert ask(page, "Hello!") == "Hello! How can I help you today?"
    body = sent(page)
    assert body["messages"][0] == {"role": "system", "content": "Be kind."}
    assert (body["temperature"], body["top_p"], body["seed"], body["max_tokens"]) == (0, 0.9, 7, 512)
    reload(page, demo)
    values = "['system', 'top-p', 'seed'].map((id) => document.getElementById(id).value)"
    assert page.script(f"return {values}") == ["Be kind.", "0.9", "7"]


def test_an_error_is_shown_and_the_prompt_kept(page: Browser) -> None:
    page.script("document.getElementById('max-tokens').value = -1")
    page.type("#text", "hi\n")
    assert "max_tokens" in page.until("document.getElementById('error').textContent")
    assert page.script("return document.getElementById('text').value") == "hi"
    assert page.script(f"return {STORED_CHATS}") == 0
    page.script("document.getElementById('max-tokens').value = 20")
    page.press("\n")
    page.until(ANSWERED)
    assert page.script("return document.getElementById('error').hidden")


def test_without_the_server_it_says_so_and_keeps_the_prompt(page: Browser) -> None:
    page.offline(True)
    try:
        page.type("#text", "What is 2 + 3?\n")
        expected = "The server can't be reached; try again."
        assert page.until("document.getElementById('error').textContent") == expected
        assert page.script("return document.getElementById('error').getAttribute('role')") == "alert"
        assert page.script("return document.getElementById('text').value") == "What is 2 + 3?"
        shoot(page, "unreachable")
    finally:
        page.offline(False)
    page.press("\n")
    assert "5" in page.until(ANSWERED)


def test_a_lost_connection_keeps_what_has_come(page: Browser) -> None:
    """The stream ends without its last event."""
    page.script("""
        const events = ['{"choices": [{"delta": {"content": "Half an"}}]}'].map((data) => `data: ${data}\\n\\n`);
        window.fetch = async () => new Response(new Blob(events).stream());
    """)
    page.type("#text", "hi\n")
    assert page.until("document.getElementById('error').textContent").startswith(
        "The connection to the server was lost"
    )
    assert page.script(f"return {ANSWERED}") == "Half an"


def test_without_the_key_it_is_asked_for(page: Browser, demo: ServerProcess) -> None:
    page.script("sessionStorage.clear()")
    page.open(f"{demo.url}/")
    page.until("document.getElementById('settings').open")
    assert page.script("return document.activeElement.id") == "key"
    assert page.text("#model") == "The server wants an API key: give it under Settings."
    page.press("wrong")
    page.click("#settings .main")
    page.until("document.getElementById('model').textContent.startsWith('The server refused the API key')")
    page.until("document.getElementById('settings').open")
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
    page.click("#open-history")
    shoot(page, "history")
    titles = "[...document.querySelectorAll('.chat span:first-child')].map((title) => title.textContent)"
    assert page.script(f"return {titles}") == ["Hello!", "What is the capital of Spain?"]
    page.click("#chats li:last-child .chat")
    assert page.script(f"return {ANSWERED}") == "The capital of Spain is Madrid."
    assert API_KEY not in page.script("return JSON.stringify(localStorage)"), "the key stays in the tab"


def test_history_can_be_deleted(page: Browser, demo: ServerProcess) -> None:
    for question in ("What is the capital of Spain?", "Hello!", "What is 2 + 3?"):
        page.click("#fresh")
        ask(page, question)
    page.click("#open-history")
    page.click("#chats li:first-child .small")
    assert page.script(f"return {STORED_CHATS}") == 2
    assert page.script("return document.getElementById('talk').hidden"), "the one that was open is gone"
    page.script("window.confirm = () => true")
    page.click("#delete-all")
    assert page.script(f"return {STORED_CHATS}") == 0
    assert page.text("#no-chats") == "No conversations yet."
    reload(page, demo)
    assert page.script("return document.getElementById('talk').hidden")


def test_full_storage_costs_the_oldest_conversations(page: Browser) -> None:
    page.script("""
        const text = JSON.stringify({updated: 1, messages: [{role: 'user', content: 'x'.repeat(1_000_000)}]});
        for (const id of [1, 2]) localStorage.setItem(`roost-chat-${id}`, text.replace('1', id));
        for (let rest = '', size = 2 ** 22; size >= 1; size /= 2) {
          try { localStorage.setItem('rest', rest + 'x'.repeat(size)); rest += 'x'.repeat(size); } catch { /* full */ }
        }
    """)
    assert ask(page, "Hello!")
    assert page.script("return localStorage.getItem('roost-chat-1')") is None
    assert page.script("return localStorage.getItem('roost-chat-2')")
    assert page.script(f"return {STORED_CHATS}") == 2


@pytest.mark.parametrize("stored", ["{", "null", "[]", '{"messages": "x"}', '{"messages": [{"role": "user"}]}'])
def test_broken_history_is_ignored(page: Browser, demo: ServerProcess, stored: str) -> None:
    page.script("localStorage.setItem('roost-chat-x', arguments[0]); sessionStorage.setItem('roost-open', 'x')", stored)
    reload(page, demo)
    page.click("#open-history")
    assert page.text("#no-chats") == "No conversations yet."
    assert page.complaints() == []


def test_a_prompt_without_an_answer_comes_back_after_a_reload(page: Browser, demo: ServerProcess) -> None:
    show(page, demo, "Hello!", "Hi.", "What is 2 + 3?")
    assert page.script("return document.getElementById('text').value") == "What is 2 + 3?"
    page.press("\n")
    page.until("document.querySelectorAll('.assistant:not(.running)').length === 2")
    assert [message["role"] for message in sent(page)["messages"]] == ["user", "assistant", "user"]


def test_a_message_can_be_edited(page: Browser) -> None:
    ask(page, "What is the capital of Spain?")
    ask(page, "Hello!")
    page.click(".user:first-child .idle-only")
    page.press(" Or not?" + ESCAPE)
    assert page.text(".user:first-child p") == "What is the capital of Spain?"
    page.click(".user:first-child .idle-only")
    page.script("document.activeElement.value = 'What is the capital of Japan?'")
    shoot(page, "edit")
    page.press(ENTER)
    page.until(f"document.querySelectorAll('.turn').length === 2 && {ANSWERED}")
    assert page.script(f"return {ANSWERED}") == "The capital of Japan is Tokyo."
    assert [message["content"] for message in sent(page)["messages"]] == ["What is the capital of Japan?"]


def test_an_answer_can_be_regenerated(page: Browser, demo: ServerProcess) -> None:
    show(page, demo, "Hello!", "Hi.", "What is the capital of Spain?", "No idea.")
    assert (
        page.script("return [...document.querySelectorAll('.last-only')].filter((b) => b.checkVisibility()).length")
        == 1
    )
    page.click(".assistant:last-child .last-only")
    page.until(f"{ANSWERED}?.includes('Madrid')")
    assert [message["content"] for message in sent(page)["messages"]] == [
        "Hello!",
        "Hi.",
        "What is the capital of Spain?",
    ]
    page.offline(True)
    try:
        page.click(".assistant:last-child .last-only")
        page.until("!document.getElementById('error').hidden")
    finally:
        page.offline(False)
    assert "Madrid" in page.script(f"return {ANSWERED}"), "without a new answer, the old one stays"


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


@pytest.mark.parametrize("has_clipboard", [True, False], ids=["secure", "plain HTTP"])
def test_answers_and_code_can_be_copied(page: Browser, demo: ServerProcess, has_clipboard: bool) -> None:
    show(page, demo, "A message.", MARKDOWN)
    page.allow("clipboardReadWrite", "clipboardSanitizedWrite")
    page.script("window.pasted = () => clipboard.readText().then((text) => { window.copied = text })")
    page.script("window.clipboard = navigator.clipboard")
    if not has_clipboard:
        page.script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    code = MARKDOWN.partition("```python\n")[2].partition("```")[0]
    for selector, expected in ((".user", "A message."), (".code", code.rstrip()), (".assistant > .tools", MARKDOWN)):
        page.click(f"{selector} .small")
        page.until("document.getElementById('announcer').textContent === 'Copied'")
        page.script("window.copied = null; window.pasted(); document.getElementById('announcer').textContent = ''")
        assert page.until("window.copied").strip() == expected.strip()


def test_hostile_output_is_harmless(page: Browser, demo: ServerProcess) -> None:
    show(page, demo, HOSTILE, HOSTILE)
    assert page.script("return window.pwned") is None
    forbidden = "script, img, iframe, svg, math, style, form, input, object, [onerror], [style], [id]"
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
    ],
    ids=["quotes", "lists", "brackets", "stars", "ticks", "tags", "cells", "long"],
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
    for _ in range(8):
        page.press(TAB)
        focused = "const focused = document.activeElement"
        order.append(page.script(f"{focused}; return focused.id || focused.ariaLabel || focused.textContent"))
        outlined = "#box" if order[-1] == "text" else ":focus"
        style = page.script(f"return getComputedStyle(document.querySelector('{outlined}'))['outline-style']")
        assert style == "solid", order
    page_controls = ["open-history", "open-settings", "scroll"]
    turn_controls = ["Copy message", "Edit message", "Copy answer", "Regenerate"]
    assert order == [*page_controls, *turn_controls, "text"]


def test_everything_has_a_name(page: Browser, demo: ServerProcess) -> None:
    """Every control has an accessible name."""
    show(page, demo, "hi", MARKDOWN)
    page.click("#open-history")
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
    show(page, demo, "hi", MARKDOWN)
    page.script(
        "document.getElementById('error').textContent = 'wrong'; document.getElementById('error').hidden = false"
    )
    assert page.script(CONTRAST) == []
    for name in ("settings", "history"):
        page.click(f"#open-{name}")
        assert page.script(CONTRAST) == []
        page.press(ESCAPE)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844), (320, 600)])
def test_it_fits(page: Browser, demo: ServerProcess, scheme: str, width: int, height: int) -> None:
    page.screen(width, height)
    page.emulate(prefers_color_scheme=scheme)
    show(page, demo, "A word of great length: " + "x" * 300, MARKDOWN + "\n\n" + "y" * 300)
    assert_fits(page, f"answer-{scheme}-{width}")
    for name in ("settings", "history"):
        page.click(f"#open-{name}")
        assert_fits(page, f"{name}-{scheme}-{width}")
        page.press(ESCAPE)
    page.click("#fresh")
    ask(page, "Tell me a story about a boat.")
    page.click(".user .idle-only")
    assert_fits(page, f"talk-{scheme}-{width}")
    assert page.complaints() == []


def assert_fits(page: Browser, name: str) -> None:
    """Only code and tables scroll horizontally."""
    shoot(page, name)
    assert page.script("return document.documentElement.scrollWidth <= window.innerWidth")
    wide = page.script(
        "return [...document.querySelectorAll('main, dialog[open], header, #ask, .turn')]"
        ".filter((element) => element.scrollWidth > element.clientWidth).map((element) => element.outerHTML)"
    )
    assert wide == []
