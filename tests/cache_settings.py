"""Restores JAX's process-wide settings of the compile cache and of the compiler after a test."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from unittest.mock import patch

import jax

_UNOPTIMIZED: Final = "jax_disable_most_optimizations"


@contextmanager
def restored() -> Iterator[None]:
    """Restores the settings at exit. A cache that an engine of an earlier test has opened is closed before."""
    jax.experimental.compilation_cache.compilation_cache.reset_cache()
    names = [name for name in jax.config.values if "cache" in name or name == _UNOPTIMIZED]
    before = {name: jax.config.values[name] for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        jax.experimental.compilation_cache.compilation_cache.reset_cache()


@contextmanager
def unoptimized() -> Iterator[None]:
    """Compiles without most optimizations, which takes half as long; so do processes that are started.

    It is for tests that don't depend on the code that the compiler generates.
    """
    with restored(), patch.dict(os.environ, JAX_DISABLE_MOST_OPTIMIZATIONS="1"):
        jax.config.update(_UNOPTIMIZED, True)
        yield
    jax.clear_caches()  # other modules' tests get optimized programs


@contextmanager
def compiled_quickly(folder: Path) -> Iterator[None]:
    """Compiles without most optimizations, and equal programs once; see `unoptimized`.

    Args:
      folder: Empty folder for the programs.
    """
    with unoptimized():
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        yield
