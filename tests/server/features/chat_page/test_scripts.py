"""The chat page's scripts in Node: the work of Markdown grows as its text does, and tabs keep each other's changes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import roost.server.features.chat_page
from programs import program

FOLDER = Path(roost.server.features.chat_page.__file__).parent

MARKDOWN = """
import { Marked, Tokenizer } from "./vendor/marked.esm.js";
import { blocksOf } from "./lexer.js";

let searched = 0;
const emStrong = Tokenizer.prototype.emStrong;
Tokenizer.prototype.emStrong = function (text, masked, before) {
  searched += masked.length;
  return emStrong.call(this, text, masked, before);
};

const parser = new Marked({ gfm: true, breaks: true });
const searchedIn = (text) => { searched = 0; blocksOf(text, parser); return searched; };
const htmlOf = (text) => parser.parser(blocksOf(text, parser));
const line = "A **bold** word, `code`, a [link](https://a.b) and *more*.\\n";
console.log(JSON.stringify({
  searched: [1000, 2000, 4000].map((count) => searchedIn("*a $".repeat(count))),
  text: blocksOf("*a $".repeat(1000), parser)[0].tokens.map((token) => token.raw).join("") === "*a $".repeat(1000),
  short: htmlOf(line.repeat(9)) === parser.parse(line.repeat(9)),
  long: htmlOf(line.repeat(90)) === parser.parse(line.repeat(90)),
}));
"""


TABS = """
import { addTurn, changesOf, copyOf, merge, newChat } from "./tree.js";

const stored = newChat({ title: "old" });
const question = addTurn(stored, undefined, { role: "user", content: "Tell me a story." });
const answer = addTurn(stored, question, { role: "assistant", content: "Half an", end: "lost", state: "state_1" });
const open = () => { const chat = structuredClone(stored); return [chat, copyOf(chat)]; };
const [ours, oursBefore] = open();
const [theirs, theirsBefore] = open();

addTurn(theirs, theirs.turns[1], { role: "user", content: "And then?" });
theirs.turns[1].state = null;
theirs.title = "new";
Object.assign(ours.turns[1], { content: "Half an answer.", end: "stop", usage: { total: 3 } });
const changes = changesOf(ours, oursBefore);
merge(ours, oursBefore, structuredClone(theirs));
merge(theirs, theirsBefore, structuredClone(ours));
console.log(JSON.stringify({ ours, theirs, changes, none: changesOf(stored, copyOf(stored)) }));
"""


MESSAGES = """
import { areMessages, chatOf, shownTurns } from "./tree.js";

const messages = (count) => Array.from({ length: count }, (_, place) => ({ role: "user", content: String(place) }));
const shown = shownTurns(chatOf(messages(16384)));
console.log(JSON.stringify({
  all: shown.length === 16384 && shown.every(({ content }, place) => content === String(place)),
  are: [1, 16384, 16385].map((count) => areMessages(messages(count))),
}));
"""


def run(text: str, folder: Path, *files: str) -> dict[str, Any]:
    """Returns what a program for Node prints that imports some of the page's files."""
    node = program("node", "nodejs")
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((FOLDER / name).read_bytes())
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "program.js").write_text(text)
    ran = subprocess.run([node, "program.js"], cwd=folder, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    result: dict[str, Any] = json.loads(ran.stdout)
    return result


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(MARKDOWN, tmp_path_factory.mktemp("page"), "lexer.js", "vendor/marked.esm.js")


def test_the_search_for_partners_grows_as_the_text(found: dict[str, list[int]]) -> None:
    first, second, fourth = found["searched"]
    assert second < 2.5 * first
    assert fourth < 2.5 * second


def test_a_text_in_pieces_is_the_whole_text(found: dict[str, bool]) -> None:
    assert found["text"]


def test_lines_look_as_without_pieces(found: dict[str, bool]) -> None:
    assert found["short"]
    assert found["long"]


def test_tabs_keep_what_each_other_changed(tmp_path: Path) -> None:
    """Of a turn, too, only the fields are taken that another tab has changed."""
    tabs = run(TABS, tmp_path, "tree.js")
    assert tabs["ours"] == tabs["theirs"]
    assert tabs["ours"]["title"] == "new"
    _, answer, message = tabs["ours"]["turns"]
    assert (answer["content"], answer["end"], answer["state"]) == ("Half an answer.", "stop", None)
    assert (message["parent"], message["content"]) == (answer["id"], "And then?")
    (change,) = tabs["changes"]["turns"]
    assert change == {"id": answer["id"], "content": "Half an answer.", "end": "stop", "usage": {"total": 3}}
    assert set(tabs["changes"]) == {"id", "turns"}
    assert tabs["none"]["turns"] == []


def test_a_file_of_countless_messages_is_no_chat(tmp_path: Path) -> None:
    """A hostile one would keep the page busy, and again whenever it is loaded."""
    assert run(MESSAGES, tmp_path, "tree.js") == {"all": True, "are": [True, True, False]}
