"""Builds the files of a release from a commit: the sdist, a wheel for any platform, and one with the native kernels.

    python3 dev.py release                # builds dist/ and installs it into clean environments
    python3 dev.py release --tag v0.1.0   # the same for a tag: its version, and the date in CHANGELOG.md, must agree

Both wheels are built from the sdist. The build is reproducible: times are those of the commit, and every file is built
a second time, in another folder and from the checkout, and must have the same bytes. sbom/ gets the packages of each
image, in CycloneDX's format.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any, Final

from packaging.metadata import Metadata
from packaging.requirements import Requirement

ROOT: Final = Path(__file__).resolve().parents[1]
DIST: Final = ROOT / "dist"
SBOM: Final = ROOT / "sbom"
"""Bills of materials, apart from what is published on the package index."""

IMAGES: Final = {
    "cpu": ("cpu", "buckets", "otel"),
    "tpu": ("tpu", "buckets", "otel"),
    "cuda": ("cuda13", "buckets", "otel"),
}
"""Locks that each target of the Dockerfile installs."""

PLATFORM: Final = "manylinux_2_34_x86_64"
"""Oldest platform of the native wheel: Debian 12, Ubuntu 22.04, RHEL 9 and later. Others get the pure wheel."""

NATIVE: Final = "roost/kernels/native/_cpu.abi3.so"
DATA: Final = (
    "roost/__init__.py",
    "roost/configs/calibration/text.txt",
    "roost/configs/demo/config.json",
    "roost/configs/demo/model.safetensors",
    "roost/kernels/native/csrc/handlers.cc",
    "roost/kernels/native/csrc/handlers_avx2.cc",
    "roost/kernels/native/csrc/threads.h",
    "roost/server/features/chat_page/index.html",
    "roost/server/py.typed",
)
"""Files without which an installation would not work, or not as said: one of each kind."""

SDIST_FILES: Final = (
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "pyproject.toml",
    "setup.py",
)


class ReleaseError(Exception):
    """A release cannot be built from this commit; the text says why, and what to do."""


# --- what is released


def run(command: Sequence[str | Path], folder: Path = ROOT, environment: Mapping[str, str] | None = None) -> str:
    """Runs a command and returns its output.

    Raises:
      ReleaseError: The command failed.
    """
    words = list(map(str, command))
    done = subprocess.run(words, cwd=folder, env=environment, stdout=PIPE, stderr=STDOUT, text=True)
    if done.returncode != 0:
        raise ReleaseError(f"{done.stdout}\n`{' '.join(words)}` failed; the lines above say why")
    return done.stdout


def committed() -> str:
    """Returns the commit of the checkout.

    Raises:
      ReleaseError: Files were changed since.
    """
    if changed := run(["git", "status", "--porcelain"]).strip():
        raise ReleaseError(f"a release is built from a commit; commit, remove or ignore these files:\n{changed}")
    return run(["git", "rev-parse", "HEAD"]).strip()


def version_of(tree: Path) -> str:
    """Returns the version that pyproject.toml names."""
    return str(tomllib.loads((tree / "pyproject.toml").read_text())["project"]["version"])


def check_tag(tag: str, version: str, changelog: str) -> None:
    """Checks that a tag, the version and the changelog agree.

    Raises:
      ReleaseError: They do not.
    """
    if tag != f"v{version}":
        raise ReleaseError(f"the tag is {tag}, but pyproject.toml has version {version}: the tag has to be v{version}")
    if not re.search(rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        raise ReleaseError(f"CHANGELOG.md has no heading `## {version} - YYYY-MM-DD` with the date of the release")


def export(commit: str, folder: Path) -> Path:
    """Writes the files of a commit into a new folder, and returns it."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, stdout=PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


# --- building


def builder(epoch: int) -> dict[str, str]:
    """Returns the environment of a build: the commit's time, and the tools of this environment."""
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "PATH": tools}


def build(tree: Path, folder: Path, epoch: int, *options: str) -> Path:
    """Builds one file from a tree, with the locked tools of this environment, and returns it."""
    command = [sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", str(folder), *options, str(tree)]
    run(command, folder=tree.parent, environment=builder(epoch))
    (built,) = folder.iterdir()
    return built


def build_sdist(tree: Path, folder: Path, epoch: int) -> Path:
    """Builds the sdist and returns it; its members have the commit's time and no owner."""
    path = build(tree, folder, epoch, "--sdist")
    plain = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            info = tarfile.TarInfo(member.name)
            info.type, info.size, info.mtime = member.type, member.size, epoch
            info.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            new.addfile(info, old.extractfile(member))
    path.write_bytes(gzip.compress(plain.getvalue(), mtime=epoch))
    return path


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpacks an sdist into a folder and returns the tree within."""
    shutil.unpack_archive(sdist, folder, filter="data")
    (tree,) = folder.iterdir()
    return tree


def build_pure(tree: Path, folder: Path, epoch: int) -> Path:
    """Builds the wheel for any platform."""
    return build(tree, folder, epoch, "--wheel", "-C--build-option=--pure")


def build_native(tree: Path, folder: Path, epoch: int) -> Path:
    """Builds the wheel with the native kernels for x86-64; auditwheel checks what they need of the system."""
    plain = build(tree, folder / "plain", epoch, "--wheel")
    if NATIVE not in zipfile.ZipFile(plain).namelist():
        raise ReleaseError("kernels/native/csrc does not compile here: `pip install --verbose .` says why")
    audit = [sys.executable, "-P", "-m", "auditwheel", "repair", "--plat", PLATFORM, "--only-plat"]
    run([*audit, "--wheel-dir", folder / "repaired", plain], environment=builder(epoch))
    (repaired,) = (folder / "repaired").iterdir()
    return repaired


def build_all(commit: str, folder: Path) -> list[Path]:
    """Builds the files of a release twice, and returns those of the first time.

    Args:
      folder: Gets the files and the trees from which they were built.

    Raises:
      ReleaseError: Something failed, or the second build has other bytes.
    """
    epoch = int(run(["git", "log", "-1", "--format=%ct", commit]))
    checkout = export(commit, folder / "checkout")
    sdist = build_sdist(checkout, folder / "sdist", epoch)
    first, again = [], []
    for number, kind in enumerate((build_pure, build_native)):
        first.append(kind(unpack(sdist, folder / f"first-{number}"), folder / f"built-{number}", epoch))
        again.append(kind(export(commit, folder / f"again-{number}"), folder / f"rebuilt-{number}", epoch))
    again.append(build_sdist(export(commit, folder / "again"), folder / "sdist-again", epoch))
    for one, other in zip([*first, sdist], again, strict=True):
        if (one.name, digest(one)) != (other.name, digest(other)):
            raise ReleaseError(f"{one.name} differs from a second build of it: compare {one} and {other}")
    return [sdist, *first]


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- bills of materials


def bill_of_materials(version: str, locks: Sequence[str]) -> dict[str, Any]:
    """Returns what is installed with Roost from some locks on Linux, as a CycloneDX document."""
    texts = [(ROOT / "requirements" / f"{lock}.txt").read_text() for lock in locks]
    lines = [line.rstrip(" \\") for text in texts for line in text.splitlines() if re.match(r"[\w.-]+==", line)]
    on_linux = {"sys_platform": "linux"}
    found = {
        each.name: next(iter(each.specifier)).version
        for each in map(Requirement, lines)
        if each.marker is None or each.marker.evaluate(on_linux)
    }
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": component("application", "roost", version)},
        "components": [component("library", *each) for each in sorted(found.items())],
    }


def component(kind: str, name: str, version: str) -> dict[str, str]:
    """Returns a package of the Python Package Index in CycloneDX's words."""
    return {"type": kind, "name": name, "version": version, "purl": f"pkg:pypi/{name}@{version}"}


# --- what is in it


def faults_of_wheel(path: Path, version: str) -> list[str]:
    """Returns one line for everything in a wheel that should not be there, or is missing."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        metadata = archive.read(f"roost-{version}.dist-info/METADATA")
    Metadata.from_email(metadata, validate=True)
    wanted = [*DATA, *([NATIVE] if PLATFORM in path.name else [])]
    fits = re.compile(rf"roost-{re.escape(version)}\.dist-info/.*|roost/(?!.*\btests/|\w+\.py$|.*\.so$).*")
    return differences(path, names, wanted, [name for name in names if name not in wanted and not fits.fullmatch(name)])


def faults_of_sdist(path: Path, version: str) -> list[str]:
    """Returns one line for everything in an sdist that should not be there, or is missing."""
    with tarfile.open(path) as archive:
        names = [name.removeprefix(f"roost-{version}/") for name in archive.getnames()]
    wanted = [*SDIST_FILES, *(name.removeprefix("roost/") for name in DATA)]
    return differences(path, names, wanted, [name for name in names if name.startswith("tests/")])


def differences(path: Path, names: Sequence[str], wanted: Sequence[str], wrong: Sequence[str]) -> list[str]:
    """Returns a line for each name that is missing or wrong."""
    return [
        *(f"{path.name}: {name} is missing" for name in wanted if name not in names),
        *(f"{path.name}: {name} does not belong there" for name in wrong),
    ]


def faults(files: Sequence[Path], version: str) -> list[str]:
    """Returns one line for everything that is wrong with the files of a release."""
    return [
        line
        for path in files
        for line in (faults_of_wheel if path.suffix == ".whl" else faults_of_sdist)(path, version)
    ]


def main(arguments: Sequence[str]) -> int:
    """Builds a release of the checkout's commit into dist/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tag", help="check that this tag, the version and CHANGELOG.md agree")
    options = parser.parse_args(arguments)
    version = version_of(ROOT)
    if options.tag:
        check_tag(options.tag, version, (ROOT / "CHANGELOG.md").read_text())
    commit = committed()
    with tempfile.TemporaryDirectory() as scratch:
        files = build_all(commit, Path(scratch))
        if found := faults(files, version):
            raise ReleaseError("\n".join(found))
        shutil.rmtree(DIST, ignore_errors=True)
        DIST.mkdir()
        for path in files:
            shutil.copy(path, DIST)
            print(f"{digest(path)}  {path.name}  {path.stat().st_size / 2**20:.1f} MiB")
    SBOM.mkdir(exist_ok=True)
    for image, locks in IMAGES.items():
        (SBOM / f"roost-{version}-{image}.cdx.json").write_text(json.dumps(bill_of_materials(version, locks), indent=1))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ReleaseError as error:
        sys.exit(str(error))
