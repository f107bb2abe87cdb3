"""GitHub's workflows and CITATION.cff: their schemas, and the workflows' security. They do not run here."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_tools import program, run
from kubernetes_objects import DEPLOY

ROOT = DEPLOY.parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
HOW = "python3 dev.py test-deploy brings it"
PINNED = re.compile(r"uses: [\w./-]+@[0-9a-f]{40} # v[\d.]+")


def workflow(name: str) -> dict[str, Any]:
    """Returns a workflow."""
    return yaml.safe_load((ROOT / ".github/workflows" / f"{name}.yml").read_text())


def commands(content: dict[str, Any]) -> list[str]:
    """Returns the commands of a workflow's steps."""
    return [step["run"] for job in content["jobs"].values() for step in job["steps"] if "run" in step]


@pytest.mark.deploy
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_it_keeps_to_githubs_schema(path: Path) -> None:
    run(program("check-jsonschema", HOW), "--builtin-schema", "vendor.github-workflows", str(path))


@pytest.mark.deploy
def test_zizmor_finds_no_fault() -> None:
    run(program("zizmor", HOW), "--offline", "--no-progress", str(ROOT / ".github/workflows"))


@pytest.mark.deploy
def test_zizmor_would_find_a_fault(tmp_path: Path) -> None:
    (tmp_path / ".github/workflows").mkdir(parents=True)
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    (tmp_path / ".github/workflows/ci.yml").write_text(re.sub(r"@[0-9a-f]{40} # v6", "@v6", text))
    said = run(program("zizmor", HOW), "--offline", "--no-progress", str(tmp_path / ".github/workflows"), fails=True)
    assert "unpinned-uses" in said


@pytest.mark.deploy
def test_citation_keeps_to_its_schema() -> None:
    run(program("check-jsonschema", HOW), "--builtin-schema", "vendor.citation-file-format", str(ROOT / "CITATION.cff"))


def test_actions_are_pinned_by_commit() -> None:
    used = [line.strip(" -") for path in WORKFLOWS for line in path.read_text().splitlines() if "uses:" in line]
    assert used
    assert [line for line in used if not PINNED.fullmatch(line)] == []


def test_they_run_what_people_run() -> None:
    for name, job in (("ci", ".ci/run"), ("nightly", ".ci/run nightly")):
        *before, last = commands(workflow(name))
        assert [command.split()[:2] for command in before] == [["sudo", "apt-get"]]
        assert last == job
    assert (ROOT / ".ci/run").is_file()
    assert commands(workflow("publish")) == ['python3 dev.py release --tag "$GITHUB_REF_NAME"']


def test_only_the_job_that_publishes_may_prove_who_it_is() -> None:
    allowed = {name: job["permissions"] for name, job in workflow("publish")["jobs"].items()}
    assert allowed == {"build": {"contents": "read"}, "publish": {"id-token": "write"}}
    assert workflow("publish")["permissions"] == {}
    assert workflow("ci")["permissions"] == {"contents": "read"}
