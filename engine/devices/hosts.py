"""Several hosts that run one model: the leader schedules, and sends every program call to the others, which repeat it.

JAX runs a program over the devices of several processes if every process starts it. So every host loads its own shards
and compiles the same programs. For each call the leader then sends the program's label and its inputs from the host,
some kilobytes; the followers make the same call and read nothing back. Collectives exchange the data that programs need
from other hosts' devices.

A lost host takes its part of the state with it and cannot be replaced. The leader then ends all streams with an error,
and exits; the followers exit when they lose the leader. An orchestrator restarts the group. Followers send a heartbeat
each second, so that a host that hangs is also detected.

A message is a program's label and the bytes of its inputs, whose shapes and dtypes all hosts know. Connections present
a secret that the leader draws and a collective distributes, so that no other process can read prompts. JAX's
distributed client offers a key-value store and barriers, but no ordered stream to its peers, and no public interface.
ZeroMQ lacks the secret and the detection of lost peers, which are most of this module.
"""

import contextlib
import hmac
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Final

import jax
import numpy as np
from jax.experimental import multihost_utils

from ..types.config import HostGroup
from ..types.errors import ConfigError, EngineDeadError

_BEAT_S: Final = 1.0
"""Seconds between two heartbeats of a follower."""

_SILENCE_S: Final = 10.0
"""Seconds without a heartbeat after which a follower is considered lost."""

_JOIN_S: Final = 600
"""Seconds that hosts wait for each other at the start; some may have weights to download first."""

_SHUTDOWN_S: Final = 5
"""Seconds that hosts wait for each other at shutdown."""

_SECRET_BYTES: Final = 32

_END: Final = b""
"""Last message: the leader shuts down."""


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

    def __init__(self, followers: Sequence[Connection]) -> None:
        self.failure: EngineDeadError | None = None
        self._followers = followers
        for follower in followers:
            threading.Thread(target=self._watch, args=(follower,), name="host", daemon=True).start()

    def send(self, label: str, inputs: bytes) -> None:
        """Sends a program call to all followers.

        Args:
          label: Label of the program.
          inputs: Bytes of its inputs, one after the other.

        Raises:
          EngineDeadError: A follower has been lost.
        """
        if self.failure is not None:
            raise self.failure
        message = label.encode() + b"\0" + inputs
        for follower in self._followers:
            try:
                follower.send_bytes(message)
            except OSError:
                raise self._lost() from None

    def close(self) -> None:
        """Lets the followers shut down."""
        for follower in self._followers:
            with contextlib.suppress(OSError):
                follower.send_bytes(_END)

    def _watch(self, follower: Connection) -> None:
        """Reads heartbeats until they stop."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                follower.recv_bytes()
        self._lost()

    def _lost(self) -> EngineDeadError:
        self.failure = self.failure or EngineDeadError("a host of the group has been lost")
        return self.failure


def connect_followers(group: HostGroup) -> Leader:
    """Waits on the leader for a connection from each follower. Every host of the group must connect."""
    with socket.create_server(("", group.port + 1)) as listener:
        secret = _shared_secret()
        listener.settimeout(_JOIN_S)
        return Leader([_accept(listener, secret) for _ in range(group.count - 1)])


def calls_of_leader(group: HostGroup, on_loss: Callable[[], None]) -> Iterator[tuple[str, bytes]]:
    """Yields the leader's program calls to a follower, as `Leader.send` takes them, until the leader shuts down.

    Args:
      on_loss: Called by another thread if the leader is lost; this thread may be waiting for it in a collective.

    Raises:
      EngineDeadError: The leader has been lost.
    """
    secret, is_over = _shared_secret(), threading.Event()
    leader = socket.create_connection((group.leader, group.port + 1), timeout=_JOIN_S)
    leader.settimeout(None)
    with _connection(leader) as connection:
        connection.send_bytes(secret)
        beats = connection, is_over, on_loss
        threading.Thread(target=_send_heartbeats, args=beats, name="heartbeat", daemon=True).start()
        try:
            while (message := connection.recv_bytes()) != _END:
                label, _, inputs = message.partition(b"\0")
                yield label.decode(), inputs
        except (EOFError, OSError):
            raise EngineDeadError("the leader of the hosts is gone") from None
        is_over.set()


def _send_heartbeats(leader: Connection, is_over: threading.Event, on_loss: Callable[[], None]) -> None:
    try:
        while not is_over.wait(_BEAT_S):
            leader.send_bytes(b".")
    except OSError:
        if not is_over.is_set():
            on_loss()


def min_over_hosts(number: int) -> int:
    """Returns the smallest of the hosts' numbers."""
    return int(np.min(multihost_utils.process_allgather(np.int32(number))))


def _shared_secret() -> bytes:
    drawn = np.frombuffer(secrets.token_bytes(_SECRET_BYTES), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(drawn)).astype(np.uint8))


def _accept(listener: socket.socket, secret: bytes) -> Connection:
    """Returns the next connection that presents the secret; others are closed."""
    while True:
        follower, _ = listener.accept()
        silence = struct.pack("ll", int(_SILENCE_S), 0)
        follower.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, silence)  # for reads only
        connection = _connection(follower)
        with contextlib.suppress(EOFError, OSError):
            if hmac.compare_digest(connection.recv_bytes(_SECRET_BYTES), secret):
                return connection
        connection.close()


def _connection(peer: socket.socket) -> Connection:
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(peer.detach())
