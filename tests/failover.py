"""A PostgreSQL whose primary moves between two servers, each behind a PgBouncer if that is installed."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from databases import PostgresqlServer, made_server, postgresql_program, unprivileged
from ports import free_port

PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "store.md"
POOLER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


@contextmanager
def pooled(server: PostgresqlServer) -> Iterator[int]:
    """Runs a PgBouncer in front of a server, set up as docs/how-to/store.md says, and yields its port."""
    assert POOLER is not None
    with tempfile.TemporaryDirectory(prefix="roost-pgbouncer-") as folder:
        config, users, port = Path(folder, "pgbouncer.ini"), Path(folder, "users"), free_port()
        users.write_text('"roost" "sesame"\n')
        (text,) = re.findall(r"<!-- pgbouncer -->\n```ini\n(.*?)```", PAGE.read_text(), re.DOTALL)
        text = text.replace("port=5432", f"port={server.port}").replace("6432", str(port))
        text = text.replace("0.0.0.0", "127.0.0.1").replace("/etc/pgbouncer/userlist.txt", str(users))
        config.write_text(f"{text}unix_socket_dir =\n")
        Path(folder).chmod(0o755)
        with (
            Path(folder, "log").open("ab") as log,
            subprocess.Popen([POOLER, str(config)], user=unprivileged(), stdout=log, stderr=log, cwd="/") as process,
        ):
            try:
                until(lambda: answers(server.url.replace(str(server.port), str(port))))
                yield port
            finally:
                process.kill()


def answers(url: str) -> bool:
    import psycopg

    with suppress(psycopg.OperationalError), psycopg.connect(url, connect_timeout=3) as connection:
        return bool(connection.execute("SELECT 1").fetchall())
    return False


def until(condition: Callable[[], object], seconds: float = 300) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def query(server: PostgresqlServer, sql: str) -> list[tuple[Any, ...]]:
    """Runs a statement that returns rows, as the superuser."""
    import psycopg

    with psycopg.connect(server.url, autocommit=True) as connection:
        return connection.execute(sql).fetchall()


def wait_for_standbys(server: PostgresqlServer, names: str) -> None:
    """Sets the standbys that each commit waits for; none if `names` is empty."""
    import psycopg

    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        connection.execute("SELECT pg_reload_conf()")
    until(lambda: query(server, "SHOW synchronous_standby_names") == [(names,)])


@dataclass
class PostgresqlPair:
    """A primary, and a standby that each commit waits for.

    Attributes:
      ports: Ports through which clients reach the two servers.
    """

    primary: PostgresqlServer
    standby: PostgresqlServer
    ports: Sequence[int] = ()

    @property
    def url(self) -> str:
        """Address that names both servers, and leads to the primary."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"postgresql://roost:sesame@{hosts}/postgres?target_session_attrs=read-write"

    def fail_over(self, is_noticed: Callable[[], object]) -> None:
        """Ends the primary as if its machine had gone, promotes the standby, and lets the old primary follow it.

        Args:
          is_noticed: Condition that has to hold before the promotion.
        """
        self.primary.stop()
        until(is_noticed)
        query(self.standby, "SELECT pg_promote()")
        self.primary, self.standby = self.standby, self.primary
        self.attach()

    def attach(self) -> None:
        """Makes the standby a copy of the primary, starts it, and lets each commit wait for it."""
        program = postgresql_program("pg_basebackup")
        assert program is not None
        shutil.rmtree(self.standby.folder, ignore_errors=True)
        options = ["-D", str(self.standby.folder), "-d", self.primary.url, "-R", "-X", "stream", "-c", "fast"]
        user = unprivileged()
        subprocess.run([program, *options, "--no-sync"], user=user, check=True, capture_output=True, cwd="/")
        self.standby.start()
        wait_for_standbys(self.primary, "ANY 1 (*)")
        until(lambda: query(self.primary, "SELECT sync_state FROM pg_stat_replication") == [("quorum",)])


@contextmanager
def postgresql_pair() -> Iterator[PostgresqlPair]:
    """Runs two servers, of which one follows the other; skips the test where PostgreSQL is not installed."""
    with tempfile.TemporaryDirectory(prefix="roost-pair-") as name, ExitStack() as stack:
        Path(name).chmod(0o755)
        folders = [Path(name, each) for each in ("one", "two")]
        for folder in folders:
            folder.mkdir()
            shutil.chown(folder, unprivileged() or os.getuid())
        pair = PostgresqlPair(made_server(folders[0]), PostgresqlServer(folders[1] / "data", free_port()))
        pair.primary.start()
        stack.callback(pair.primary.stop)
        stack.callback(pair.standby.stop)
        pair.attach()
        if POOLER is None:
            pair.ports = [pair.primary.port, pair.standby.port]
        else:
            pair.ports = [stack.enter_context(pooled(each)) for each in (pair.primary, pair.standby)]
        yield pair
