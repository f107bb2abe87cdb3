"""The version is the same wherever it is written, and a tag has to agree with it."""

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def load(name: str) -> ModuleType:
    """Imports a file of tools/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build_release = load("build_release")


def text(name: str) -> str:
    """Returns a file of the checkout."""
    return (ROOT / name).read_text()


def test_the_version_is_the_same_everywhere() -> None:
    chart = yaml.safe_load(text("deploy/chart/Chart.yaml"))
    compose = yaml.safe_load(text("deploy/compose/compose.yaml"))
    written = {
        "Chart.yaml": chart["version"],
        "Chart.yaml's appVersion": chart["appVersion"],
        "CITATION.cff": yaml.safe_load(text("CITATION.cff"))["version"],
        "compose.yaml": compose["services"]["roost"]["image"].removeprefix("roost:").removesuffix("-cpu"),
        **{f"Dockerfile's {each}": each for each in re.findall(r"-t roost:([\d.]+)-", text("Dockerfile"))},
        "Dockerfile's label": re.findall(r'image\.version="([^"]+)"', text("Dockerfile"))[0],
    }
    assert written == dict.fromkeys(written, VERSION)


def test_the_changelog_has_a_section_of_the_version() -> None:
    assert re.search(rf"^## {re.escape(VERSION)} - (unreleased|\d{{4}}-\d\d-\d\d)$", text("CHANGELOG.md"), re.MULTILINE)


def test_the_licence_is_the_same_everywhere() -> None:
    licence = tomllib.loads(text("pyproject.toml"))["project"]["license"]
    assert " AND ".join(yaml.safe_load(text("CITATION.cff"))["license"]) == licence
    assert re.findall(r'image\.licenses="([^"]+)"', text("Dockerfile")) == [licence]


@pytest.mark.parametrize(
    ("tag", "heading", "fault"),
    [
        ("v0.2.0", "## 0.1.0 - 2026-12-01", "the tag has to be v0.1.0"),
        ("0.1.0", "## 0.1.0 - 2026-12-01", "the tag has to be v0.1.0"),
        ("v0.1.0", "## 0.1.0 - unreleased", "with the date of the release"),
        ("v0.1.0", "## 0.1.0", "with the date of the release"),
        ("v0.1.0", "## 0x1.0 - 2026-12-01", "with the date of the release"),
    ],
)
def test_a_tag_that_disagrees_is_refused(tag: str, heading: str, fault: str) -> None:
    with pytest.raises(build_release.ReleaseError, match=fault):
        build_release.check_tag(tag, "0.1.0", f"# Changelog\n\n{heading}\n")


def test_a_tag_that_agrees_is_taken() -> None:
    build_release.check_tag("v0.1.0", "0.1.0", "# Changelog\n\n## 0.1.0 - 2026-12-01\n\n### Added\n")
