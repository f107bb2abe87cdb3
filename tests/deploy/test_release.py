"""A release of this checkout: built twice, looked into, and served from an environment without a compiler."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from subprocess import PIPE

import pytest
from deploy_tools import load, program
from jsonschema import Draft7Validator
from kubernetes_objects import DEPLOY
from referencing import Registry, Resource

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(900)]

ROOT = DEPLOY.parent
build_release, check_release = load("build_release", ROOT / "tools"), load("check_release", ROOT / "tools")
VERSION = build_release.version_of(ROOT)
PURE = f"roost-{VERSION}-py3-none-any.whl"
NATIVE = f"roost-{VERSION}-cp312-abi3-manylinux_2_34_x86_64.whl"


def commit(folder: Path) -> str:
    """Returns a commit of the tracked files as they are now, on no branch.

    Git's index is copied to `folder` first, since other programs lock the checkout's own: `git describe --dirty` does.
    """
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    index = folder / "index"
    environment = {**os.environ, "GIT_INDEX_FILE": str(index)}

    def git(*arguments: str) -> str:
        command = ["git", *author, *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, stdout=PIPE, text=True, check=True).stdout.strip()

    own = subprocess.run(["git", "rev-parse", "--git-path", "index"], cwd=ROOT, stdout=PIPE, text=True, check=True)
    shutil.copy(ROOT / own.stdout.strip(), index)
    git("add", "--update")
    return git("commit-tree", git("write-tree"), "-p", "HEAD", "-m", "The tracked files as they are now")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of a release."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout, of which a release could be built")
    program("g++", "install a C++ compiler")
    built = tmp_path_factory.mktemp("dist")
    commit_of_now = commit(tmp_path_factory.mktemp("index"))
    for path in build_release.build_all(commit_of_now, tmp_path_factory.mktemp("build")):
        shutil.copy(path, built)
    return built


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> object:
    """An environment that sees the packages of ours, but not our Roost, so that pip need not download them."""
    made = check_release.make_environment(sys.executable, tmp_path_factory.mktemp("home"))
    base = str(made.home / "venv")
    packages = sysconfig.get_path("purelib", vars={"base": base, "platbase": base})
    (Path(packages) / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


def test_a_release_is_an_sdist_and_two_wheels_with_what_belongs_there(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {f"roost-{VERSION}.tar.gz", PURE, NATIVE}
    assert build_release.faults(sorted(folder.iterdir()), VERSION) == []


def test_what_does_not_belong_there_is_reported(folder: Path, tmp_path: Path) -> None:
    wrong = tmp_path / PURE
    with zipfile.ZipFile(folder / NATIVE) as old, zipfile.ZipFile(wrong, "w") as new:
        for name in old.namelist():
            if not name.endswith("demo/model.safetensors"):
                new.writestr(name, old.read(name))
        new.writestr("tests/test_x.py", "")
    assert build_release.faults([wrong], VERSION) == [
        f"{PURE}: roost/configs/demo/model.safetensors is missing",
        f"{PURE}: roost/kernels/native/_cpu.abi3.so does not belong there",
        f"{PURE}: tests/test_x.py does not belong there",
    ]


@pytest.mark.parametrize("image", build_release.IMAGES)
def test_a_bill_of_materials_has_what_an_image_installs(image: str) -> None:
    """By CycloneDX's schema, and with what differs between images."""
    bill = build_release.bill_of_materials(VERSION, build_release.IMAGES[image])
    schemas = [file for file in importlib.metadata.files("cyclonedx-python-lib") or [] if file.match("*.schema.json")]
    texts = {file.name.replace(".SNAPSHOT", ""): json.loads(file.read_text()) for file in schemas}
    registry = Registry().with_resources((each["$id"], Resource.from_contents(each)) for each in texts.values())
    Draft7Validator(texts["bom-1.6.schema.json"], registry=registry).validate(bill)
    names = {each["name"] for each in bill["components"]}
    assert {"jax", "obstore", "opentelemetry-sdk"} <= names
    assert "httpx2-jsfetch" not in names  # for Emscripten only
    assert ("libtpu" in names, "jax-cuda13-plugin" in names) == (image == "tpu", image == "cuda")


def test_images_install_the_locks_of_their_bills() -> None:
    stages = re.findall(r"^FROM builder AS build-(\w+)\n(RUN .*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    installed = {image: tuple(re.findall(r"requirements/([\w]+)\.txt", line)) for image, line in stages}
    assert installed == build_release.IMAGES


def test_pip_chooses_the_native_kernels_here(folder: Path, environment: object) -> None:
    assert check_release.chosen_wheel(environment, folder, VERSION).name == NATIVE


@pytest.mark.parametrize("name", [PURE, NATIVE])
def test_an_installed_wheel_serves(
    folder: Path, environment: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOST_SLOTS", "4")  # few programs to compile
    monkeypatch.setenv("ROOST_PREFILL_CHUNK", "128")
    environment.pip("install", "--no-index", "--no-deps", "--force-reinstall", folder / name)  # type: ignore[attr-defined]
    assert "Madrid" in check_release.check(environment, folder / name, VERSION)
