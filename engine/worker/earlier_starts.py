"""Files of earlier starts in the folder of compiled programs: traced programs, and numbers of slots that fit.

Tracing a model in Python takes longer than reading its compiled programs. What tracing yields, a program in StableHLO,
is therefore kept in a file that `jax.export` defines, and a later start only compiles the call of that program. One
start may read a file while another writes it.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
from jax import export

from ...kernels import native
from ..devices.platform import numerics
from ..model.state import BlockStates
from ..sampling.sampler import Logprobs, Sampled
from .served import Served
from .speculative_steps import Speculated
from .steps import PrefillResult

type Step = Callable[..., tuple[list[Any], Any]]
"""A function that returns a list of arrays, with None for unchanged arrays, and a result."""

_PACKAGES: Final = ("flax", "jax", "jaxlib", "numpy")
"""Packages whose code runs while a program is traced."""

_SOURCES: Final = ("engine", "kernels")
"""Folders of Roost's own code that runs while a program is traced."""

_DIGEST_BYTES: Final = 32
for _result in (BlockStates, Logprobs, PrefillResult, Sampled, Speculated):
    export.register_namedtuple_serialization(_result, serialized_name=f"roost.{_result.__name__}")


class TracedStep(NamedTuple):
    """A step that was traced.

    Attributes:
      step: The step, as a function of the leaves of its arguments.
      used: Indices of the leaves on which its outputs depend.
      is_written: Whether there is an array in each place of the list that it returns.
    """

    step: Step
    used: frozenset[int]
    is_written: tuple[bool, ...]


class TraceCache:
    """Folder of traced programs, one file each.

    A file's name is a hash of all that tracing depends on: versions, Roost's source, JAX's flags, the served model
    and the arguments' shapes. A file that is torn or was not written for its name is ignored, and replaced.

    Args:
      served: The model, on a single device.
    """

    def __init__(self, folder: Path, served: Served) -> None:
        self._folder = folder
        facts = served.config, served.dtype, served.devices, served.slots, served.settings.speculation
        self._facts = (source_fingerprint(), _versions(), _flags(), numerics(), facts)

    def traced(self, label: str, step: Step, arguments: tuple[Any, ...]) -> TracedStep:
        """Returns a traced step, which is read from the folder or traced and kept there.

        Args:
          label: Name of the program.
          step: Function to trace.
          arguments: Shapes of its arguments.
        """
        leaves, tree = jax.tree.flatten(arguments)
        path = self._folder / f"traced-{self._key(label, tree, leaves)}"
        exported = _read(path)
        if exported is None:
            exported = _export(step, tree, leaves)
            _write(path, exported)
        return TracedStep(exported.call, frozenset(exported.module_kept_var_idx), is_written(exported.out_tree))

    def _key(self, label: str, tree: Any, leaves: list[Any]) -> str:
        shapes = [(leaf.shape, str(leaf.dtype)) for leaf in leaves]
        facts = repr((self._facts, label, str(tree), shapes))
        return hashlib.sha256(facts.encode()).hexdigest()


def is_written(outputs: Any) -> tuple[bool, ...]:
    """Returns whether a step writes each array of its list, from the structure of its outputs."""
    written, _ = jax.tree.unflatten(outputs, [True] * outputs.num_leaves)
    return tuple(each is not None for each in written)


def open_trace_cache(folder: Path | None, served: Served) -> TraceCache | None:
    """Returns the cache in the folder of compiled programs; None without one, or where programs cannot be exported.

    Args:
      folder: Folder of compiled programs; None if none are kept.
      served: The model on its devices.
    """
    if folder is None or not served.devices.platform.exports_programs:
        return None
    return TraceCache(folder, served)


@cache
def source_fingerprint() -> str:
    """Returns a digest of Roost's code that may run while a program is traced."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for path in sorted(path for folder in _SOURCES for path in (root / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(root)} {path.stat().st_size} ".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _versions() -> tuple[str, ...]:
    return platform.python_version(), *(importlib.metadata.version(package) for package in _PACKAGES)


def _flags() -> list[tuple[str, str]]:
    """Returns JAX's flags, except for the flags of the compilation cache, which do not affect traced programs."""
    return [(name, repr(value)) for name, value in sorted(jax.config.values.items()) if "cache" not in name]


def on_leaves(step: Step, tree: Any) -> Step:
    """Returns the step as a function of the leaves of its arguments, given their structure."""

    def flat(*leaves: Any) -> tuple[list[Any], Any]:
        return step(*jax.tree.unflatten(tree, leaves))

    return flat


def _export(step: Step, tree: Any, leaves: list[Any]) -> export.Exported:
    # JAX vouches for calls that it knows. The key holds what decides on ours.
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in native.CALLS]
    return export.export(jax.jit(on_leaves(step, tree)), disabled_checks=checks)(*leaves)


def _read(path: Path) -> export.Exported | None:
    """Returns the traced program in a file; None if there is none, or another one."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, program = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if digest != _digest(path, program):
        return None
    return export.deserialize(bytearray(program))


def _write(path: Path, exported: export.Exported) -> None:
    program = bytes(exported.serialize())
    keep_file(path, _digest(path, program) + program)


def _digest(path: Path, program: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + program).digest()


def slots_key(numerics: str, served: Served, limit_bytes: int) -> str:
    """Returns a name for everything that decides the number of slots.

    Args:
      numerics: Digest of the versions and of the device; see `roost.engine.devices.platform.numerics`.
      limit_bytes: Memory of a device.
    """
    settings, shards = served.settings, served.devices.shards
    chosen = (settings.quantize, settings.kv_dtype, settings.prefill_chunk, settings.state_cache_inexact)
    facts = repr((numerics, served.config, chosen, served.dtype.name, shards.data, shards.model, limit_bytes))
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def read_slots(folder: Path | None, key: str) -> int | None:
    """Returns the number of slots that an earlier start found; None if there is none."""
    if folder is None:
        return None
    try:
        slots = int(_file(folder, key).read_text())
    except (OSError, ValueError):
        return None
    return slots if slots > 0 else None


def write_slots(folder: Path | None, key: str, slots: int) -> None:
    """Keeps a number of slots for later starts, if the folder is writable."""
    if folder is not None:
        keep_file(_file(folder, key), f"{slots}\n".encode())


def _file(folder: Path, key: str) -> Path:
    return folder / f"slots-{key}"


def keep_file(path: Path, content: bytes) -> None:
    """Writes a whole file; does nothing if its folder is not writable."""
    temporary = path.with_name(f"{path.name}-{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
