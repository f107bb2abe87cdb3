"""The core without HTTP: what generates text works where no web framework is installed."""

import pkgutil
from collections.abc import Iterator
from importlib import import_module

from forbidden_imports import WEB, run

ROOMS = ("constraints", "errors", "generation", "llm", "schemas", "text")
"""Rooms of the server that import no web framework, not even through others."""


def modules_of(room: str) -> Iterator[str]:
    """Yields the names of all modules of a room, except programs."""
    package = import_module(f"roost.server.{room}")
    yield package.__name__
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            yield module.name


def test_the_core_imports_no_web_framework() -> None:
    modules = [module for room in ROOMS for module in modules_of(room)]
    found = run("".join(f"import {module}\n" for module in modules), *WEB)
    assert found.returncode == 0, found.stderr


def test_an_import_of_a_web_framework_is_seen() -> None:
    found = run("import starlette.types", *WEB)
    assert found.returncode != 0
    assert "must not import" in found.stderr
