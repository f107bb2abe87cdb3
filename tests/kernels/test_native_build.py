"""The build step: which sources are compiled, which wheel has the native kernels, and for which Pythons it is."""

import re
import sysconfig
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from roost.kernels import native
from roost.kernels.native.build import BuildWheel
from setuptools import Distribution, Extension


@pytest.mark.parametrize(
    ("pure", "free_threaded", "has_kernels", "limited_api"),
    [(False, False, True, "cp312"), (True, False, False, "cp312"), (False, True, True, False)],
    ids=["native", "pure", "free-threaded"],
)
def test_the_kernels_are_in_a_wheel_of_the_limited_api_where_there_is_one(
    pure: bool, free_threaded: bool, has_kernels: bool, limited_api: str | bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sysconfig.get_config_var
    monkeypatch.setattr(
        sysconfig, "get_config_var", lambda name: int(free_threaded) if name == "Py_GIL_DISABLED" else real(name)
    )
    command = BuildWheel(Distribution({"name": "roost", "ext_modules": [Extension("roost._cpu", ["handlers.cc"])]}))
    command.py_limited_api, command.pure = "cp312", pure
    command.finalize_options()
    assert command.root_is_pure is not has_kernels
    assert command.py_limited_api == limited_api


def test_every_header_is_compiled_and_no_two_include_each_other() -> None:
    sources = {path.name: path for path in (Path(native.__file__).parent / "csrc").iterdir()}
    included = {name: re.findall(r'#include "(\w+\.h)"', path.read_text()) for name, path in sources.items()}
    TopologicalSorter(included).prepare()  # raises CycleError
    assert {name for names in included.values() for name in names} == set(sources) - {"handlers.cc"}
