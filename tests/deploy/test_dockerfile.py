"""The Dockerfile, without building it."""

import re
import tomllib
from pathlib import Path

import pytest
from deploy_tools import program, run
from kubernetes_objects import DEPLOY, PRESETS, committed, container, pod

ROOT = DEPLOY.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.mark.deploy
def test_hadolint_finds_no_fault() -> None:
    run(program("hadolint", "python3 dev.py test-deploy brings it"), str(ROOT / "Dockerfile"))


def test_images_are_those_of_the_manifests() -> None:
    targets = set(re.findall(r"^FROM runtime AS (\w+)$", DOCKERFILE, re.MULTILINE))
    assert {container(committed(preset))["image"].rpartition("-")[2] for preset in PRESETS} == targets


def test_the_user_is_that_of_the_manifests() -> None:
    users = {pod(committed(preset))["securityContext"]["runAsUser"] for preset in PRESETS}
    assert re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE) == [str(user) for user in users]


def test_all_is_installed_by_hashes() -> None:
    locks = set(re.findall(r"-r (requirements/[\w.]+)", DOCKERFILE))
    assert len(locks) == 5
    assert all("--hash=sha256:" in (ROOT / lock).read_text() for lock in locks)
    for line in re.findall(r"pip install (.*)", DOCKERFILE):
        assert line.startswith(("--no-deps --require-hashes", "--no-deps --no-build-isolation ."))


def test_the_build_is_shown_all_that_is_shipped() -> None:
    shown = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    rooms = {"configs", "engine", "kernels", "server", "setup.py"}
    own = {"__init__.py", *project["tool"]["setuptools"]["package-data"]["roost"]}
    licences = {Path(name).parts[0] for name in project["project"]["license-files"]}
    assert {*rooms, *own, *licences, project["project"]["readme"], "requirements"} <= shown
