"""A feature can be deleted, and one be added, without edits elsewhere: the server's core knows none of them.

`FEATURE_SUITES=1 python3 dev.py test-sweep tests/e2e/test_features.py` also runs the server's other tests without each
feature, which takes an hour.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest
from fastapi.routing import APIRoute
from mutants import ROOT, Tree
from roost.server.feature import Feature, load_features
from roost.server.features.index import NAMES
from server_process import SHAPES, serving
from sweeps import swept

FEATURES: Final = {feature.name: feature for feature in load_features()}

CHAT: Final = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "ignore_eos": True}

REQUEST_S: Final = 300.0
"""Timeout of a request, which only a server that hangs reaches."""

SHARED: Final = ("server/schemas/field_rules.py",)
"""Files of the core that may name features' paths: one table has the fields of all APIs."""

BY_DEFAULT: Final = ("batches",)
"""Features that are deleted by default; sweeps delete the others, too."""


def core_sources() -> Iterator[tuple[str, str]]:
    """Yields the path and the text of every file of the server outside the features."""
    for path in sorted((ROOT / "server").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith("server/features/") and name not in SHARED:
            yield name, path.read_text()


def own_paths(feature: Feature) -> set[str]:
    """Returns the URL paths of a feature's endpoints, without parameters."""
    routes = (route for router in (*feature.routers, *feature.admin_routers) for route in router.routes)
    return {route.path.partition("/{")[0] for route in routes if isinstance(route, APIRoute) and len(route.path) > 1}


def own_tables(feature: Feature) -> set[str]:
    """Returns the names of a feature's tables and indexes."""
    upgrades = () if feature.tables is None else feature.tables.upgrades
    return {name for upgrade in upgrades for text in upgrade.statements for name in re.findall(r"roost_\w+", text)}


def mentions(text: str, feature: Feature) -> list[str]:
    """Returns the names of a feature that a text has: those of its folder, paths and tables."""
    words = {f"features/{feature.name}", f"features.{feature.name}", *own_paths(feature), *own_tables(feature)}
    return sorted(word for word in words if re.search(rf"(?<!\w){re.escape(word)}(?![\w-])", text))


@pytest.mark.parametrize("name", NAMES)
def test_the_core_names_no_feature(name: str) -> None:
    found = [f"{path}: {word}" for path, text in core_sources() for word in mentions(text, FEATURES[name])]
    assert not found, "\n".join(["", *found])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("responses", 'instead = "use it in /v1/responses"'),
        ("batches", 'execute("SELECT * FROM roost_batches")'),
        ("native", "from .features.native import generate"),
    ],
)
def test_a_name_of_a_feature_is_seen(name: str, text: str) -> None:
    assert mentions(text, FEATURES[name])
    assert not mentions("/v1/responses_of_others roost_batcheses", FEATURES[name])


# --- copies of the tree


class FeatureTree(Tree):
    """A copy of the project from which features are deleted, or to which one is added."""

    @property
    def index(self) -> Path:
        """File that names the features."""
        return self.root / "server" / "features" / "index.py"

    def delete(self, name: str) -> None:
        """Deletes a feature and its tests."""
        shutil.rmtree(self.root / "server" / "features" / name)
        shutil.rmtree(self.root / "tests" / "server" / "features" / name, ignore_errors=True)
        for test in (self.root / "tests").rglob("test_*.py"):
            if mentions(test.read_text(), FEATURES[name]):
                test.unlink()
        self.index.write_text(re.sub(rf'"{name}",?\s*', "", self.index.read_text()))

    def check_architecture(self) -> None:
        """Runs the tests of the floor plan."""
        self.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_architecture.py")


@pytest.fixture
def tree(tmp_path: Path) -> FeatureTree:
    return FeatureTree(tmp_path)


# --- deletion


@pytest.mark.parametrize("name", [*BY_DEFAULT, *swept(*(name for name in NAMES if name not in BY_DEFAULT))])
@pytest.mark.timeout(1800)
def test_the_server_works_without_a_feature(tree: FeatureTree, tiny_config: Path, name: str) -> None:
    tree.delete(name)
    running = serving(f"random:{tiny_config}", *SHAPES, programs="tiny", PYTHONPATH=str(tree.path))
    with running as server, httpx.Client(base_url=server.url, timeout=REQUEST_S) as client:
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert answer.json()["usage"]["completion_tokens"] == 2
        for path in sorted(own_paths(FEATURES[name])):
            assert client.post(path).status_code == 404, path
    tree.check_architecture()


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.timeout(3600)
def test_types_and_other_tests_pass_without_a_feature(tree: FeatureTree, name: str) -> None:
    """All tests are collected by default, so that none imports what is gone."""
    tree.delete(name)
    tree.run("-m", "mypy", "-p", "roost.server")
    options = () if "FEATURE_SUITES" in os.environ else ("--collect-only",)
    tree.run("-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "tests/server")


# --- addition

TOY: Final = Path(__file__).with_name("toy_feature")

OLD_DATABASE: Final = """
import sys
from roost.server.database.address import StoreAddress
from roost.server.database.database import open_database
from roost.server.database.schema import Tables
from roost.server.features.toy.tables import TABLES

database = open_database(StoreAddress.parse(sys.argv[1]), Tables("toy", TABLES.upgrades[:1]))
database.run_now(lambda each: each.execute("INSERT INTO roost_toys VALUES ('bear')"), writes=True)
database.close()
"""
"""Program that makes a database of the toys' first version, with a row."""


@pytest.fixture
def tree_with_toy(tree: FeatureTree) -> FeatureTree:
    """A tree with one more folder, and with one name in the index."""
    shutil.copytree(TOY, tree.root / "server" / "features" / "toy", ignore=shutil.ignore_patterns("__pycache__"))
    tree.index.write_text(tree.index.read_text().replace("NAMES: Final = (", 'NAMES: Final = ("toy", '))
    return tree


@pytest.mark.timeout(1800)
def test_a_feature_is_a_folder_and_a_name(tree_with_toy: FeatureTree, tiny_config: Path, tmp_path: Path) -> None:
    tree, store = tree_with_toy, f"sqlite://{tmp_path / 'store.db'}"
    tree.run("-c", OLD_DATABASE, store)
    settings = ("--store", store, "--toy-greeting", "good morning")
    running = serving(f"random:{tiny_config}", "--simulate", "v5e", *settings, PYTHONPATH=str(tree.path))
    with running as server, httpx.Client(base_url=server.url, timeout=REQUEST_S) as client:
        assert client.get("/toys").json() == {"greeting": "good morning", "toys": [["bear", "red"]]}
        assert "roost_toy_windings_total 1.0" in client.get("/metrics").text
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    assert tree.run("-m", "roost.server", "toy") == "a toy greets\n"
    program = "from roost.server.settings import load_settings; print(load_settings({}).toy_greeting)"
    assert tree.run("-c", program, ROOST_TOY_GREETING="good evening") == "good evening\n"
    tree.run("tools/reference_pages.py", "--folder", str(tmp_path))
    assert (
        "| `--toy-greeting TEXT` | `ROOST_TOY_GREETING`, `toy_greeting` | hello |"
        in (tmp_path / "settings.md").read_text()
    )
    assert "| `roost_toy_windings_total` |" in (tmp_path / "metrics.md").read_text()
    tree.check_architecture()


@pytest.mark.sweep
@pytest.mark.timeout(1800)
def test_types_of_a_new_feature(tree_with_toy: FeatureTree) -> None:
    tree_with_toy.run("-m", "mypy", "-p", "roost.server")
