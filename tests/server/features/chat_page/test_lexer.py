"""The chat page's Markdown: the work for a paragraph grows as its length does."""

import json
import subprocess
from pathlib import Path

import pytest
import roost.server.features.chat_page
from programs import program

FOLDER = Path(roost.server.features.chat_page.__file__).parent

PROGRAM = """
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


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What a program for Node finds with the page's own files."""
    node, folder = program("node", "nodejs"), tmp_path_factory.mktemp("page")
    (folder / "vendor").mkdir()
    for name in ("lexer.js", "vendor/marked.esm.js"):
        (folder / name).write_bytes((FOLDER / name).read_bytes())
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "program.js").write_text(PROGRAM)
    run = subprocess.run([node, "program.js"], cwd=folder, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    result: dict[str, object] = json.loads(run.stdout)
    return result


def test_the_search_for_partners_grows_as_the_text(found: dict[str, list[int]]) -> None:
    first, second, fourth = found["searched"]
    assert second < 2.5 * first
    assert fourth < 2.5 * second


def test_a_text_in_pieces_is_the_whole_text(found: dict[str, bool]) -> None:
    assert found["text"]


def test_lines_look_as_without_pieces(found: dict[str, bool]) -> None:
    assert found["short"]
    assert found["long"]
