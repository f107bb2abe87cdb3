"""Build steps: `csrc` is compiled if there is a C++ compiler, and the checkout's scripts stay out of the package.

Without a compiler, XLA computes the same operations. The library is loaded by path and uses nothing of Python's, so
one wheel serves every version of Python.
"""

import hashlib
import shutil
import sysconfig
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from setuptools import Extension
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

_SOURCES: Final = Path(__file__).parent / "csrc"

_OPTIONS: Final = ("-O3", "-g0", "-std=c++20", "-Wall")
"""Options of the compiler. Debug information would name folders of the machine that builds."""


class BuildNative(build_ext):
    """Setuptools command that adds the folder of jaxlib's headers, known only on the machine that builds.

    It keeps the compiled library in `build/native`, where the installs of other environments find it.
    """

    def build_extension(self, ext: Extension) -> None:
        """Compiles the extension, unless an earlier build of the same sources has.

        Raises:
          CompileError: The extension cannot be compiled here. Setuptools reports this and continues, because the
            extension is optional.
        """
        jaxlib = find_spec("jaxlib")
        if jaxlib is None or jaxlib.origin is None:
            raise CompileError("jaxlib, whose headers are needed, is not installed in the build environment")
        ext.extra_compile_args = [*_OPTIONS, "-isystem", str(Path(jaxlib.origin).parent / "include")]
        built = Path(self.get_ext_fullpath(ext.name))
        kept = Path(self.get_finalized_command("build").build_base, "native", self._fingerprint() + built.suffix)
        if kept.exists():
            _copy(kept, built)
            return
        self.force = True  # a library that lies there may be of other sources
        super().build_extension(ext)
        _copy(built, kept)

    def _fingerprint(self) -> str:
        """Returns a hash of all that the library depends on, apart from the version of the compiler."""
        commands = [getattr(self.compiler, name) for name in sorted(self.compiler.executables)]
        digest = hashlib.sha256(repr((commands, version("jaxlib"))).encode())
        for path in (Path(__file__), *sorted(_SOURCES.iterdir())):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def _copy(source: Path, target: Path) -> None:
    """Copies a library to a place where another process may look for it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".part")
    shutil.copy(source, unfinished)
    unfinished.replace(target)


class BuildModules(build_py):
    """Setuptools command that takes `__init__.py` alone from the root of the checkout, which is the package `roost`."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Returns package, name and file of each module of a package."""
        modules: list[tuple[str, str, str]] = super().find_package_modules(package, package_dir)
        return [each for each in modules if package != "roost" or each[1] == "__init__"]


class BuildWheel(bdist_wheel):
    """Setuptools command with the option `--pure`: a wheel for any platform, without the native kernels."""

    user_options: Final[list[Any]] = [*bdist_wheel.user_options, ("pure", None, "leave out the native kernels")]
    boolean_options: Final[list[str]] = [*bdist_wheel.boolean_options, "pure"]

    def initialize_options(self) -> None:
        """Sets the options to their defaults."""
        super().initialize_options()
        self.pure = False

    def finalize_options(self) -> None:
        """Removes the extension before the wheel's tags are chosen, if the wheel is for any platform."""
        if self.pure:
            self.distribution.ext_modules = []
        if sysconfig.get_config_var("Py_GIL_DISABLED"):  # a Python that takes no wheel of the limited API
            self.py_limited_api = False
        super().finalize_options()
