"""Process-wide settings of JAX and of Python's warnings, made once before JAX is asked for devices."""

import errno
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Final

import jax

from .core.errors import ConfigError

GPU_MEMORY_SHARE: Final = 0.92
"""Share of a GPU's memory that JAX allocates at once, and serves all arrays from: JAX's own default of 0.75 would leave
slots out. The rest is for CUDA, its libraries and the code of programs."""

_PROBE_BYTES: Final = 2**20
"""Bytes that must fit into the folder of compiled programs, about one program."""

_UNWRITABLE: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a folder that may be the right one, but takes no new programs at present."""

_logger = logging.getLogger(__name__)


def configure_jax(compile_cache: Path | None, *, has_hosts: bool = False) -> None:
    """Sets JAX's process-wide options.

    On a GPU, JAX takes `GPU_MEMORY_SHARE` of the memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.

    Compiled programs are written to the folder, and found there by later processes. Their names tell apart programs,
    versions, compiler options and kinds of devices (for CPUs, their instructions). If the folder is full or read-only,
    programs are read from it and none is added; a warning says so.

    Args:
      compile_cache: Folder of compiled programs; None for no cache.
      has_hosts: Whether this process is one of several hosts.

    Raises:
      ConfigError: The folder cannot be one.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_MEMORY_SHARE))
    if has_hosts:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM, which shuts Roost down
    if compile_cache is None:
        return
    _check_folder(compile_cache)
    jax.config.update("jax_compilation_cache_dir", str(compile_cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE_BYTES))
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            reason = f"cannot be written to ({error.strerror}); name another folder, or off"
            raise ConfigError(f"compile_cache {folder}: {reason}") from None
        _logger.warning("compile_cache %s: no program will be kept there (%s)", folder, error.strerror)
        warnings.filterwarnings("ignore", "Error writing persistent compilation cache")  # one for each program
