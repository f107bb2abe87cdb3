"""Process-wide settings of JAX and of Python's warnings, made once before JAX looks for devices."""

import errno
import grp
import logging
import os
import pwd
import stat
import tempfile
import warnings
from pathlib import Path
from typing import Final

import jax
from filelock import FileLock

from ..types.errors import ConfigError

GPU_MEMORY_SHARE: Final = 0.92
"""Share of a GPU's memory that JAX allocates in advance, and from which it serves all arrays. JAX's default of 0.75
would waste slots. The rest is for CUDA, its libraries and the code of programs."""

_PROBE_BYTES: Final = 2**20
"""Bytes that must fit into the folder of compiled programs, about one program."""

_MAX_CACHE_BYTES: Final = 8 * 2**30
"""Maximum size of the folder of compiled programs, from which JAX removes the least recently used ones. JAX writes
programs under a lock only if there is a maximum; without it, a process may read one that another is writing."""

_UNWRITABLE: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a folder that may be correct, but currently accepts no new programs."""

_logger = logging.getLogger(__name__)


def configure_jax(compile_cache: Path | None, *, has_hosts: bool = False) -> bool:
    """Sets JAX's process-wide options.

    On a GPU, JAX takes `GPU_MEMORY_SHARE` of the memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION sets another share.

    Compiled programs are written to the folder, and found there by later processes. Their names distinguish programs,
    versions, compiler options and kinds of devices (for CPUs, their instructions). The folder holds at most
    `_MAX_CACHE_BYTES`. If it is full or read-only, programs are read from it, none is added, and a warning is logged.

    A compiled program is code. The folder is created with mode 0700. It must belong to this user or to root, and no
    other user may be able to write to it.

    Args:
      compile_cache: Folder of compiled programs; None for no cache.
      has_hosts: Whether this process is one of several hosts.

    Returns:
      Whether new programs are kept.

    Raises:
      ConfigError: The path cannot be used as the folder, or others may write to it.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_MEMORY_SHARE))
    if has_hosts:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM, which shuts Roost down
    if compile_cache is None:
        return False
    keeps_programs = _check_folder(compile_cache)
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache")  # one for each program
    jax.config.update("jax_compilation_cache_dir", str(compile_cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    is_locked = keeps_programs and _takes_locks(compile_cache)
    jax.config.update("jax_compilation_cache_max_size", _MAX_CACHE_BYTES if is_locked else -1)
    return keeps_programs


def _check_folder(folder: Path) -> bool:
    """Returns whether the folder accepts new programs.

    Raises:
      ConfigError: The path cannot be used as the folder, or others may write to it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        _check_owner(folder)
        _probe(folder)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            reason = f"cannot be written to ({error.strerror}); name another folder, or off"
            raise ConfigError(f"compile_cache {folder}: {reason}") from None
        _logger.warning("compile_cache %s: no program will be kept there (%s)", folder, error.strerror)
        return False
    return True


def _takes_locks(folder: Path) -> bool:
    """Returns whether files in the folder can be locked, as they cannot be on some network file systems."""
    try:
        with FileLock(folder / ".lockfile", timeout=10):
            return True
    except (OSError, NotImplementedError):
        return False


def _probe(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(bytes(_PROBE_BYTES))


def report_full_cache(folder: Path) -> None:
    """Logs one line if the folder of compiled programs accepted programs at the start, but no longer does."""
    try:
        _probe(folder)
    except OSError as error:
        _logger.warning("compile_cache %s: not every program was kept there (%s)", folder, error.strerror)


def _check_owner(folder: Path) -> None:
    """Checks that only this user and root can put programs into a folder.

    Raises:
      ConfigError: The folder belongs to another user, or its mode lets others write.
    """
    found = folder.stat()
    if found.st_uid not in (0, os.getuid()):
        reason = f"belongs to user {found.st_uid}, who could have any code run here; name a folder of your own, or off"
        raise ConfigError(f"compile_cache {folder}: {reason}")
    is_open_to_group = found.st_mode & stat.S_IWGRP and not _is_private_group(found.st_gid)
    if found.st_mode & stat.S_IWOTH or is_open_to_group:
        mode = stat.S_IMODE(found.st_mode)
        reason = f"others may write to it (mode {mode:04o}), and have any code run here; empty it and run chmod go-w"
        raise ConfigError(f"compile_cache {folder}: {reason}")


def _is_private_group(group_id: int) -> bool:
    """Returns whether no other known user is a member of one of this process's groups."""
    if group_id not in (os.getgid(), *os.getgroups()):
        return False
    others = {each.pw_uid for each in pwd.getpwall() if each.pw_gid == group_id} - {os.getuid()}
    try:
        names = set(grp.getgrgid(group_id).gr_mem)
    except KeyError:  # the usual case in a container, whose groups often have no names
        names = set()
    own = {each.pw_name for each in pwd.getpwall() if each.pw_uid == os.getuid()}
    return not others and names <= own
