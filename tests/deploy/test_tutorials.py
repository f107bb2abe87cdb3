"""Commands of the documentation for clusters, as far as they can be checked without one."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from deploy_tools import program, run
from doc_commands import blocks, commands
from kubernetes_objects import DEPLOY

ROOT = DEPLOY.parent
PAGES = (*sorted((ROOT / "docs").rglob("*.md")), DEPLOY / "README.md")


def typed(*start: str) -> list[list[str]]:
    """Returns the words of each command of the documentation that begins so."""
    found = [words for page in PAGES for words in _commands_of(page) if words[: len(start)] == list(start)]
    assert found, f"no page has a command that begins with {' '.join(start)}"
    return found


def _commands_of(page: Path) -> Iterator[list[str]]:
    for block in blocks(page.read_text()):
        if block.language == "sh":
            for command in commands(block.text):
                yield from map(shlex.split, re.split(r"&&|\|", command.replace("\\\n", " ").partition("  #")[0]))


@pytest.mark.deploy
def test_every_installation_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in typed("helm", "install"):
        rendered = run(program("helm", "python3 dev.py test-deploy brings it"), "template", *words[2:])
        assert "REGISTRY/roost:" in rendered, words


def test_every_built_image_is_a_target_of_the_dockerfile() -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert {words[words.index("--target") + 1] for words in typed("docker", "build")} <= targets


def test_every_applied_folder_has_manifests() -> None:
    for words in typed("kubectl", "apply", "-k"):
        assert (ROOT / words[3] / "kustomization.yaml").is_file(), words
