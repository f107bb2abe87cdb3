"""Restores JAX's process-wide settings of the compile cache after a test."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def restored() -> Iterator[None]:
    """Restores the settings at exit. A cache that an engine of an earlier test has opened is closed before."""
    jax.experimental.compilation_cache.compilation_cache.reset_cache()
    names = [name for name in jax.config.values if "cache" in name]
    before = {name: jax.config.values[name] for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        jax.experimental.compilation_cache.compilation_cache.reset_cache()
