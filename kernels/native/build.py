"""Compiles `cpu.cc` where a package of Roost is built, if there is a C++ compiler; without one, XLA does its work."""

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

_OPTIONS: Final = ("-O3", "-std=c++20", "-Wall")


class BuildNative(build_ext):
    """Adds what only the machine that builds knows: where jaxlib keeps its headers."""

    def build_extension(self, ext: Extension) -> None:
        """Compiles it.

        Raises:
          CompileError: it cannot be compiled here, which setuptools tells and goes on, as the extension is optional.
        """
        jaxlib = find_spec("jaxlib")
        if jaxlib is None or jaxlib.origin is None:
            raise CompileError("jaxlib and its headers are not installed where this is built")
        ext.extra_compile_args = [*_OPTIONS, "-isystem", str(Path(jaxlib.origin).parent / "include")]
        super().build_extension(ext)
