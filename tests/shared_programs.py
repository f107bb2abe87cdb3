"""How tests compile: which programs the processes of all runs share, and which are compiled as servers do.

Programs are kept in a folder of the user's. With `ROOST_COLD=1`, a run begins with an empty one.
"""

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

_SERVERS: Final = "ROOST_COMPILE_CACHE"
"""Environment variable that names the folder of engines; the servers that tests start inherit it."""

_RUN: Final = "TEST_RUN_FOLDER"
"""Environment variable that names the folder of one run, which its processes inherit."""

_MAX_BYTES: Final = 2 * 2**30
"""Maximum size of the folder of other programs; JAX removes those that were not used for the longest time."""

_LEAST_SECONDS: Final = 0.3
"""Seconds that a program takes to compile at least, to be kept: JAX looks at all kept ones whenever it adds one."""


TINY: Final[dict[str, Any]] = {
    "model_type": "recurrent_gemma",
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "lru_width": 32,
    "attention_window_size": 64,
    "dtype": "float32",
}
"""Configuration of a model whose programs several files share."""


def open_folder() -> tempfile.TemporaryDirectory[str] | None:
    """Makes the folder of this run; returns None in a worker, which inherits it."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return None
    import platformdirs  # which the environments of other people's clients lack, where this is not called

    run = tempfile.TemporaryDirectory(prefix="roost-tests-")
    lasting = Path(run.name) if os.environ.pop("ROOST_COLD", None) else platformdirs.user_cache_path("roost-tests")
    lasting.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ |= {_RUN: run.name, _SERVERS: str(lasting / "engines")}
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):  # else each process compiles JAX's sources for four seconds
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(lasting / "bytecode")
        sys.dont_write_bytecode = False
    return run


def folder() -> Path:
    """Returns the folder of engines' programs, which `EngineConfig.compile_cache` names."""
    return Path(os.environ[_SERVERS])


def configure_compiler(*, is_optimized: bool, is_kept: bool = True) -> None:
    """Sets JAX's process-wide settings for the tests of a file, and for the processes that they start.

    Args:
      is_optimized: Whether programs are compiled as servers do. Others take half as long to compile.
      is_kept: Whether programs are kept; a compiler for chips that are not there cannot read them again.
    """
    is_optimized |= "OPTIMIZED_TESTS" in os.environ
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(not is_optimized))
    if "jax" not in sys.modules:
        return
    import jax

    wanted = {
        "jax_disable_most_optimizations": not is_optimized,
        "jax_compilation_cache_dir": str(folder().parent / "programs") if is_kept else None,
        "jax_compilation_cache_max_size": _MAX_BYTES,
        "jax_persistent_cache_min_compile_time_secs": _LEAST_SECONDS,
    }
    changed = {name for name, value in wanted.items() if jax.config.values[name] != value}
    for name in changed:
        jax.config.update(name, wanted[name])
    if changed:
        jax.experimental.compilation_cache.compilation_cache.reset_cache()
    if "jax_disable_most_optimizations" in changed:
        jax.clear_caches()


@contextmanager
def compiled_once(name: str) -> Iterator[None]:
    """Lets one process of the run compile the programs of this name; the others wait, and find them in the folder."""
    run = Path(os.environ[_RUN])
    done = run / f"{name}.done"
    if done.exists():
        yield
        return
    with (run / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            fcntl.flock(lock, fcntl.LOCK_UN)
        yield
        done.touch()
