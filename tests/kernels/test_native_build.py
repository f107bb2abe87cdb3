"""The build step: which sources are compiled and when, which wheel has the native kernels, and for which Pythons."""

import re
import sysconfig
from graphlib import TopologicalSorter
from pathlib import Path
from types import SimpleNamespace

import pytest
from roost.kernels import native
from roost.kernels.native import build
from roost.kernels.native.build import BuildNative, BuildWheel
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext


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
    assert {name for names in included.values() for name in names} == {name for name in sources if name.endswith(".h")}


class Checkout:
    """A folder with sources, and a compiler that copies them.

    Attributes:
      source: File with the sources.
      num_compiled: Number of times that the compiler has run.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.source, self.num_compiled = folder / "csrc" / "handlers.cc", 0
        self.source.parent.mkdir()
        self.source.write_text("calls")
        monkeypatch.setattr(build, "_SOURCES", self.source.parent)
        monkeypatch.setattr(build_ext, "build_extension", self._compile)
        monkeypatch.chdir(folder)

    def _compile(self, ext: Extension) -> None:
        self.num_compiled += 1
        Path("_cpu.so").write_text(self.source.read_text())

    def install(self, compiler: str = "c++") -> str:
        """Builds the library as the install of a new environment does; returns its content."""
        library = Path("_cpu.so")
        library.unlink(missing_ok=True)
        command = BuildNative(Distribution())
        command.compiler = SimpleNamespace(executables={"compiler_cxx": None}, compiler_cxx=[compiler])
        command.get_ext_fullpath = lambda name: str(library.absolute())
        command.build_extension(Extension("_cpu", ["handlers.cc"]))
        return library.read_text()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    return Checkout(tmp_path, monkeypatch)


def test_environments_of_a_checkout_share_what_was_compiled(checkout: Checkout) -> None:
    assert [checkout.install(), checkout.install()] == ["calls", "calls"]
    assert checkout.num_compiled == 1


def test_other_sources_and_compilers_give_another_library(checkout: Checkout) -> None:
    checkout.install()
    checkout.source.write_text("other calls")
    assert checkout.install() == "other calls"
    checkout.install("another c++")
    assert checkout.num_compiled == 3
    checkout.source.write_text("calls")
    assert checkout.install() == "calls"
    assert checkout.num_compiled == 3, "the first library is still there"
