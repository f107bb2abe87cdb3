"""Several machines as one: the first, the leader, decides and tells the others each program that it runs; they follow.

JAX runs a program over the devices of several processes if each of them starts it. So every host loads its own shards
and compiles the same programs; then the leader sends, for each call, the program's name and what comes from its host,
some kilobytes, and the others make the same call. They read nothing back. What a program needs of other hosts' devices
it gets by collectives.

A host that is lost cannot be replaced, since its part of the state went with it: the leader says so at once, ends all
streams with an error, and its process; the others end when they lose the leader. Whoever runs the group starts it
again. Followers say each second that they live, so that one that hangs is found, too.

Frames on the wire: the length of a header, the header in JSON, and the arrays' bytes behind it. Connections show a
secret that the leader makes and hands out by a collective, so that nobody else can listen to prompts.
"""

import contextlib
import hmac
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import jax
import ml_dtypes  # noqa: F401  # names bfloat16 to NumPy
import numpy as np
import orjson
from jax.experimental import multihost_utils

from ..core.arrays import HostArray
from ..core.errors import ConfigError, EngineDeadError
from ..core.mesh import HostGroup

_BEAT_S: Final = 1.0
"""How often a follower says that it lives."""

_SILENCE_S: Final = 10.0
"""After so long without that, it is taken for dead."""

_JOIN_S: Final = 600
"""How long hosts wait for each other: they may have weights to fetch first."""

_PART_S: Final = 5
"""How long they wait for each other at the end."""

_SECRET_BYTES: Final = 32
_END: Final = ""
"""The name of no program: the leader ends."""

_LENGTH: Final = struct.Struct("!I")


def join(group: HostGroup) -> None:
    """Waits for the others; before anything asks JAX for devices.

    Raises:
      ConfigError: they don't come.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from us
    try:
        jax.distributed.initialize(
            f"{group.leader}:{group.port}",
            group.count,
            group.index,
            initialization_timeout=_JOIN_S,
            shutdown_timeout_seconds=_PART_S,
        )
    except RuntimeError as error:
        raise ConfigError(f"coordinator {group.leader}:{group.port}: {str(error).splitlines()[0]}") from None


class Lead:
    """The leader's side: tells the followers each call.

    Args:
      group: who they are.
    """

    def __init__(self, group: HostGroup) -> None:
        self.failure: EngineDeadError | None = None
        with socket.create_server(("", group.port + 1)) as listener:
            secret = _shared_secret()
            listener.settimeout(_JOIN_S)
            self._followers = [_welcome(listener, secret) for _ in range(group.count - 1)]
        for follower in self._followers:
            threading.Thread(target=self._listen, args=(follower,), name="host", daemon=True).start()

    def send(self, name: str, arrays: Sequence[HostArray]) -> None:
        """
        Raises:
          EngineDeadError: a host has been lost.
        """
        if self.failure is not None:
            raise self.failure
        frame = _frame(name, arrays)
        for follower in self._followers:
            try:
                follower.sendall(frame)
            except OSError:
                raise self._lost() from None

    def close(self) -> None:
        """Lets the followers end as they should."""
        for follower in self._followers:
            with contextlib.suppress(OSError):
                follower.sendall(_frame(_END, ()))

    def _listen(self, follower: socket.socket) -> None:
        """Until one falls silent."""
        follower.settimeout(None)
        timeout = struct.pack("ll", int(_SILENCE_S), 0)
        follower.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)  # of reading only
        try:
            while follower.recv(64):
                pass
        except OSError:
            pass
        self._lost()

    def _lost(self) -> EngineDeadError:
        self.failure = self.failure or EngineDeadError("a host of the group has been lost")
        return self.failure


class Follow:
    """A follower's side.

    Args:
      group: whom it belongs to.
      on_loss: called by another thread where the leader is gone: this one may wait for it in the middle of a step.
    """

    def __init__(self, group: HostGroup, on_loss: Callable[[], None]) -> None:
        self._on_loss = on_loss
        self._is_over = False
        secret = _shared_secret()
        self._leader = _reach(group.leader, group.port + 1)
        self._leader.sendall(secret)
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def calls(self) -> Iterator[tuple[str, list[HostArray]]]:
        """What the leader runs, until it ends.

        Raises:
          EngineDeadError: the leader is gone.
        """
        with self._leader, self._leader.makefile("rb") as stream:
            while (call := _read_frame(stream.read))[0] != _END:
                yield call
            self._is_over = True

    def _beat(self) -> None:
        try:
            while True:
                self._leader.sendall(b".")
                time.sleep(_BEAT_S)
        except OSError:
            if not self._is_over:
                self._on_loss()


def agree(number: int) -> int:
    """The least of what all hosts say."""
    return int(np.min(multihost_utils.process_allgather(np.int32(number))))


def _shared_secret() -> bytes:
    made = np.frombuffer(secrets.token_bytes(_SECRET_BYTES), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(made)).astype(np.uint8))


def _welcome(listener: socket.socket, secret: bytes) -> socket.socket:
    """The next connection that knows the secret; others are closed."""
    while True:
        connection, _ = listener.accept()
        connection.settimeout(_SILENCE_S)
        try:
            shown = connection.makefile("rb", buffering=0)
            said = b""
            while len(said) < _SECRET_BYTES and (piece := shown.read(_SECRET_BYTES - len(said))):
                said += piece
        except OSError:
            said = b""
        if hmac.compare_digest(said, secret):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        connection.close()


def _reach(host: str, port: int) -> socket.socket:
    connection = socket.create_connection((host, port), timeout=_JOIN_S)
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _frame(name: str, arrays: Sequence[HostArray]) -> bytes:
    header = orjson.dumps([name, [[x.dtype.name, x.shape] for x in arrays]])
    return b"".join([_LENGTH.pack(len(header)), header, *(np.ascontiguousarray(x).tobytes() for x in arrays)])


def _read_frame(read: Callable[[int], bytes]) -> tuple[str, list[HostArray]]:
    """
    Raises:
      EngineDeadError: the leader is gone.
    """

    def exactly(count: int) -> bytes:
        try:
            data = read(count)
        except OSError:
            data = b""
        if len(data) < count:
            raise EngineDeadError("the leader of the hosts is gone")
        return data

    name, shapes = orjson.loads(exactly(_LENGTH.unpack(exactly(_LENGTH.size))[0]))

    def array(kind: str, shape: list[int]) -> HostArray:
        dtype: np.dtype[Any] = np.dtype(kind)
        return np.frombuffer(exactly(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize), dtype).reshape(shape)

    return name, [array(*each) for each in shapes]
