"""Build step that compiles `cpu.cc` if there is a C++ compiler; without one, XLA computes the same operations."""

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

_OPTIONS: Final = ("-O3", "-std=c++20", "-Wall")


class BuildNative(build_ext):
    """Setuptools command that adds the folder of jaxlib's headers, known only on the machine that builds."""

    def build_extension(self, ext: Extension) -> None:
        """Compiles the extension.

        Raises:
          CompileError: The extension cannot be compiled here. Setuptools reports this and continues, because the
            extension is optional.
        """
        jaxlib = find_spec("jaxlib")
        if jaxlib is None or jaxlib.origin is None:
            raise CompileError("jaxlib, whose headers are needed, is not installed in the build environment")
        ext.extra_compile_args = [*_OPTIONS, "-isystem", str(Path(jaxlib.origin).parent / "include")]
        super().build_extension(ext)
