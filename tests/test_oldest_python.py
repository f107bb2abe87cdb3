"""What the oldest Python that Roost takes cannot do, checked on any Python."""

import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import pydantic
import pytest
import roost.server


def parts_of(annotation: object) -> Iterator[object]:
    """Yields an annotation, and every annotation inside it; aliases made by `type` are opened."""
    yield annotation
    generic = (annotation, typing.get_origin(annotation))
    aliased = [alias.__value__ for alias in generic if isinstance(alias, typing.TypeAliasType)]
    for part in (*typing.get_args(annotation), *aliased):
        yield from parts_of(part)


def is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def unhashable_metadata(annotations: dict[str, object]) -> list[str]:
    """Returns a line for each piece of metadata that CPython 3.12.0 to 3.12.2 would refuse in a union."""
    return [
        f"{where}: {metadata!r} cannot be hashed"
        for where, annotation in annotations.items()
        for part in parts_of(annotation)
        for metadata in getattr(part, "__metadata__", ())
        if not is_hashable(metadata)
    ]


def annotations_of(module: types.ModuleType) -> dict[str, object]:
    """Returns the aliases of a module, and the annotations of its classes, methods and functions."""
    found: dict[str, object] = {}
    for name, value in vars(module).items():
        where = f"{module.__name__}.{name}"
        if typing.get_origin(value) or isinstance(value, typing.TypeAliasType):
            found[where] = value
        elif getattr(value, "__module__", "") == module.__name__ and (inspect.isclass(value) or callable(value)):
            methods = vars(value).items() if inspect.isclass(value) else ()
            parts = {where: value, **{f"{where}.{name}": part for name, part in methods if inspect.isfunction(part)}}
            for owner, part in parts.items():
                hints = inspect.get_annotations(part)
                found.update({f"{owner}.{field}": hint for field, hint in hints.items()})
    return found


def server_modules() -> list[str]:
    found = pkgutil.walk_packages(roost.server.__path__, "roost.server.")
    return [module.name for module in found if not module.name.endswith("__main__")]


def test_metadata_of_every_annotation_can_be_hashed() -> None:
    """`Annotated[list[str], FailFast()] | None` is a TypeError on CPython 3.12.0 to 3.12.2, which hash a union's
    members to tell equal ones; later ones compare them instead."""
    annotations: dict[str, object] = {}
    for name in server_modules():
        annotations.update(annotations_of(importlib.import_module(name)))
    assert len(annotations) > 500, "the walk has lost its way"
    assert "roost.server.schemas.output_formats.StructuredOutputs.choice" in annotations
    assert unhashable_metadata(annotations) == []


@dataclass
class Unhashable:
    """Equality without a hash, as of pydantic's `FailFast`."""


type Alias[T] = Annotated[list[T], Unhashable()]


@pytest.mark.parametrize(
    "annotation",
    [
        Annotated[int, Unhashable()],
        list[Annotated[int, Unhashable()]],
        dict[str, tuple[Annotated[int, Unhashable()], ...]],
        Alias[int],
        Annotated[list[str], pydantic.FailFast()],
    ],
)
def test_the_walk_finds_what_it_must_report(annotation: Any) -> None:
    assert len(unhashable_metadata({"here": annotation})) == 1
    assert unhashable_metadata({"here": Annotated[int, pydantic.Field(fail_fast=True)]}) == []
