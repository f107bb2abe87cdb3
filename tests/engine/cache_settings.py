"""JAX's settings of where programs are kept: they are the process's, and tests give them back."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def restored() -> Iterator[None]:
    """Afterwards they are as they were before."""
    names = [name for name in jax.config.values if "cache" in name]
    before = {name: jax.config.values[name] for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        jax.experimental.compilation_cache.compilation_cache.reset_cache()
