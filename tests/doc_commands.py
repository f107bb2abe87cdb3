"""Commands of the documentation, as a reader pastes them."""

import re
import shlex
import subprocess
from typing import NamedTuple

INSTALL = re.compile(r"\bpip install (?P<packages>(?:[a-z][\w-]* ?)+|\.)(?=[\s`]|$)")
"""A documented installation of packages by name, or of the clone."""


class Block(NamedTuple):
    """A fenced block, without its fences.

    Attributes:
      packages: Packages that the page installs last before the block: by name, or "." for Roost; none if it names none.
    """

    section: str
    language: str
    text: str
    packages: tuple[str, ...] = ()


def blocks(text: str) -> list[Block]:
    """Returns the fenced blocks of a Markdown file that name a language, under the headings that they follow."""
    found, section = [], ""
    for match in re.finditer(r"^#+ (?P<heading>[^\n]*)$|^```(?P<language>\w+)\n(?P<text>.*?)^```$", text, re.M | re.S):
        if match["heading"]:
            section = match["heading"]
        else:
            found.append(Block(section, match["language"], match["text"], installed(text[: match.start()])))
    return found


def installed(text: str) -> tuple[str, ...]:
    """Returns the packages of the last `pip install` of a text."""
    installs = INSTALL.findall(text)
    return tuple(installs[-1].split()) if installs else ()


def commands(block: str) -> list[str]:
    """Splits a block into commands: of several lines where a quote or a backslash goes on, or where a variable is set
    for the next command."""
    found, started = [], ""
    for line in block.splitlines():
        started += line
        if is_whole(started):
            found.append(started.strip())
            started = ""
        else:
            started += "\n"
    assert not started.strip(), f"unfinished: {started}"
    return [command for command in found if words(command)]


def is_whole(text: str) -> bool:
    """Returns whether a shell would run a text, that would come to anything, and no here-document lacks its end."""
    if text.endswith("\\") or (text.endswith(")") and re.match(r"\w+=\$\(", text)):
        return False
    done = subprocess.run(["bash", "-n", "-c", text], capture_output=True)
    return done.returncode == 0 and b"here-document" not in done.stderr


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)
