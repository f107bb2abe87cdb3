"""Takes README's pictures of the chat page in Debian's Chromium: a chat with the demo model that goes on in three ways.

    python tools/page_pictures.py

`tests/e2e/browser.py` says what it needs. The pictures change with the page and the model only.
"""

import sys
import tempfile
from pathlib import Path
from typing import Final

import orjson

sys.path += [str(Path(__file__).parents[1] / "tests" / folder) for folder in ("", "e2e")]
from browser import Browser, browsing
from demo_talk import STORIES, turns
from server_process import serving

FOLDER: Final = Path(__file__).parents[1] / "docs" / "pictures"

CHAT: Final = turns("My name is Theo.", "Nice to meet you, Theo!", "Tell me a story about a bear.", STORIES[1])
SETTINGS: Final = {"temperature": "0.5", "min-p": "0.1", "seed": "11"}
DONE: Final = "document.querySelector('#talk > :last-child .tools') && !document.querySelector('.running')"


def main() -> None:
    """Writes one picture for light pages and one for dark pages."""
    with (
        serving("demo", "--slots", "4", "--prefill-chunk", "128") as server,
        browsing() as page,
        tempfile.TemporaryDirectory() as folder,
    ):
        file = Path(folder, "chat.json")
        file.write_bytes(orjson.dumps(CHAT))
        page.screen(1280, 1060)
        page.open(f"{server.url}/health")
        page.script("localStorage.setItem('roost-settings', arguments[0])", orjson.dumps(SETTINGS).decode())
        page.open(server.url)
        page.until("document.getElementById('model').textContent === 'demo'")
        for question in ("What is 2 + 3?", "What is the capital of Spain?"):
            ask(page, question)
            page.click("#fresh")
        page.type("#import-files", str(file))
        page.until("document.querySelectorAll('.turn').length === 4")
        page.script("document.querySelector('.chat').click()")
        ask(page, "What is my name?")
        page.type("#text", "Tell me a story about a boat.")
        page.click("[aria-label='Three answers, side by side']")
        page.until(f"document.querySelectorAll('.pick').length === 3 && {DONE}")
        page.script("document.getElementById('text').focus()")
        page.point_away()
        for scheme in ("light", "dark"):
            page.emulate(prefers_color_scheme=scheme)
            page.screenshot(FOLDER / f"page-{scheme}.webp")


def ask(page: Browser, question: str) -> None:
    """Asks a question in the chat that is shown."""
    before = page.script("return document.querySelectorAll('.turn').length")
    page.type("#text", question + "\n")
    page.until(f"document.querySelectorAll('.turn').length === {before + 2} && {DONE}")


if __name__ == "__main__":
    main()
