"""Several hosts that run one model: the leader schedules, and sends every program call to the others, which repeat it.

JAX runs a program over the devices of several processes if every process starts it. So every host loads its own shards
and compiles the same programs. For each call the leader then sends the program's label and its inputs from the host,
some kilobytes; the followers make the same call and read nothing back. Collectives exchange the data that programs need
from other hosts' devices.

A lost host takes its part of the state with it and cannot be replaced. The leader then ends all streams with an error,
and exits; the followers exit when they lose the leader. An orchestrator restarts the group. Followers send a heartbeat
each second, so that a host that hangs is also detected.

A frame is the length of a header, the header in JSON, and the arrays' bytes. Connections present a secret that the
leader draws and a collective distributes, so that no other process can read prompts. JAX's distributed client offers a
key-value store and barriers, but no ordered stream to its peers, and no public interface. ZeroMQ with msgpack lacks the
secret and the detection of lost peers, which are most of this module.
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

from ..types.config import HostGroup
from ..types.errors import ConfigError, EngineDeadError
from ..types.host_memory import HostArray

_BEAT_S: Final = 1.0
"""Seconds between two heartbeats of a follower."""

_SILENCE_S: Final = 10.0
"""Seconds without a heartbeat after which a follower is considered lost."""

_JOIN_S: Final = 600
"""Seconds that hosts wait for each other at the start; some may have weights to download first."""

_SHUTDOWN_S: Final = 5
"""Seconds that hosts wait for each other at shutdown."""

_SECRET_BYTES: Final = 32
_END: Final = ""
"""Label in the last frame: the leader shuts down."""

_LENGTH: Final = struct.Struct("!I")


def join(group: HostGroup) -> None:
    """Waits for the other hosts. Call it before JAX looks for devices, and after `configure_jax`.

    Raises:
      ConfigError: A host is missing.
    """
    try:
        jax.distributed.initialize(
            f"{group.leader}:{group.port}",
            group.count,
            group.index,
            initialization_timeout=_JOIN_S,
            shutdown_timeout_seconds=_SHUTDOWN_S,
        )
    except RuntimeError as error:
        raise ConfigError(f"coordinator {group.leader}:{group.port}: {str(error).splitlines()[0]}") from None


class Leader:
    """The leader's connections to its followers, whose heartbeats it watches, each in a thread.

    Args:
      followers: Connections whose peers have presented the secret; see `connect_followers`.

    Attributes:
      failure: Error that ends the engine, set when a follower has been lost.
    """

    def __init__(self, followers: Sequence[socket.socket]) -> None:
        self.failure: EngineDeadError | None = None
        self._followers = followers
        for follower in followers:
            threading.Thread(target=self._watch, args=(follower,), name="host", daemon=True).start()

    def send(self, label: str, arrays: Sequence[HostArray]) -> None:
        """Sends a program call to all followers.

        Raises:
          EngineDeadError: A follower has been lost.
        """
        if self.failure is not None:
            raise self.failure
        frame = _frame(label, arrays)
        for follower in self._followers:
            try:
                follower.sendall(frame)
            except OSError:
                raise self._lost() from None

    def close(self) -> None:
        """Lets the followers shut down."""
        for follower in self._followers:
            with contextlib.suppress(OSError):
                follower.sendall(_frame(_END, ()))

    def _watch(self, follower: socket.socket) -> None:
        """Reads heartbeats until they stop."""
        follower.settimeout(None)
        timeout = struct.pack("ll", int(_SILENCE_S), 0)
        follower.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)  # for reads only
        try:
            while follower.recv(64):
                pass
        except OSError:
            pass
        self._lost()

    def _lost(self) -> EngineDeadError:
        self.failure = self.failure or EngineDeadError("a host of the group has been lost")
        return self.failure


class Follower:
    """A follower's connection to its leader, to which a thread sends heartbeats.

    Args:
      leader: Connection on which the secret has been presented; see `connect_leader`.
      on_loss: Called by another thread if the leader is lost; this thread may be waiting for it in a collective.
    """

    def __init__(self, leader: socket.socket, on_loss: Callable[[], None]) -> None:
        self._on_loss = on_loss
        self._is_over = False
        self._leader = leader
        threading.Thread(target=self._send_heartbeats, name="heartbeat", daemon=True).start()

    def calls(self) -> Iterator[tuple[str, list[HostArray]]]:
        """Yields the leader's program calls as labels and inputs, until the leader shuts down.

        Raises:
          EngineDeadError: The leader has been lost.
        """
        with self._leader, self._leader.makefile("rb") as stream:
            while (call := _read_frame(stream.read))[0] != _END:
                yield call
            self._is_over = True

    def _send_heartbeats(self) -> None:
        try:
            while True:
                self._leader.sendall(b".")
                time.sleep(_BEAT_S)
        except OSError:
            if not self._is_over:
                self._on_loss()


def connect_followers(group: HostGroup) -> Leader:
    """Waits on the leader for a connection from each follower. Every host of the group must connect."""
    with socket.create_server(("", group.port + 1)) as listener:
        secret = _shared_secret()
        listener.settimeout(_JOIN_S)
        return Leader([_accept(listener, secret) for _ in range(group.count - 1)])


def connect_leader(group: HostGroup, on_loss: Callable[[], None]) -> Follower:
    """Connects a follower to its leader; see `connect_followers` and `Follower`."""
    secret = _shared_secret()
    connection = _connect(group.leader, group.port + 1)
    connection.sendall(secret)
    return Follower(connection, on_loss)


def min_over_hosts(number: int) -> int:
    """Returns the smallest of the hosts' numbers."""
    return int(np.min(multihost_utils.process_allgather(np.int32(number))))


def _shared_secret() -> bytes:
    drawn = np.frombuffer(secrets.token_bytes(_SECRET_BYTES), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(drawn)).astype(np.uint8))


def _accept(listener: socket.socket, secret: bytes) -> socket.socket:
    """Returns the next connection that presents the secret; others are closed."""
    while True:
        connection, _ = listener.accept()
        connection.settimeout(_SILENCE_S)
        try:
            presented = connection.makefile("rb").read(_SECRET_BYTES)
        except OSError:
            presented = b""
        if hmac.compare_digest(presented, secret):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        connection.close()


def _connect(host: str, port: int) -> socket.socket:
    connection = socket.create_connection((host, port), timeout=_JOIN_S)
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _frame(label: str, arrays: Sequence[HostArray]) -> bytes:
    header = orjson.dumps([label, [[x.dtype.name, x.shape] for x in arrays]])
    return b"".join([_LENGTH.pack(len(header)), header, *(np.ascontiguousarray(x).tobytes() for x in arrays)])


def _read_frame(read: Callable[[int], bytes]) -> tuple[str, list[HostArray]]:
    """Reads a label and arrays.

    Raises:
      EngineDeadError: The leader has been lost.
    """

    def exactly(count: int) -> bytes:
        try:
            data = read(count)
        except OSError:
            data = b""
        if len(data) < count:
            raise EngineDeadError("the leader of the hosts is gone")
        return data

    label, shapes = orjson.loads(exactly(_LENGTH.unpack(exactly(_LENGTH.size))[0]))

    def array(kind: str, shape: list[int]) -> HostArray:
        dtype: np.dtype[Any] = np.dtype(kind)
        return np.frombuffer(exactly(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize), dtype).reshape(shape)

    return label, [array(*each) for each in shapes]
