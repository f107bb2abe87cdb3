"""The commands of backup.md and upgrades.md in docs/how-to, on a server that runs, and what a restore changes."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from databases import KINDS, PostgresqlServer, opened, postgresql_server
from roost.server.feature import load_features
from server_process import SIMULATED, ServerProcess, launched, respond, serving, wait_for_line

PAGES = Path(__file__).resolve().parents[2] / "docs" / "how-to"


@dataclass
class Store:
    """A database, and the commands of the page for its kind.

    Attributes:
      address: Address of the database.
      restored: Address after the restore.
      folder: Folder in which the commands run.
    """

    address: str
    restored: str
    folder: Path
    commands: list[str]

    def run(self, script: str) -> str:
        """Runs commands of a page in a shell, and returns what they write."""
        for place in ("/var/lib/roost", "/var/backups/roost"):
            script = script.replace(place, f"{self.folder}{place}")
        python = self.folder / "python3"
        python.exists() or python.symlink_to(sys.executable)  # `python3` is that of the machine
        environment = {**os.environ, "ROOST_STORE": self.address, "RESTORED": self.restored}
        environment["PATH"] = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        shell = ["bash", "-euc", script]
        done = subprocess.run(shell, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout


def commands(kind: str) -> list[str]:
    """Returns the blocks of commands under a heading: the backup's and the restore's."""
    section = re.search(rf"^## {kind}$(.*?)^## ", (PAGES / "backup.md").read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None
    return re.findall(r"^```sh\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def database_server() -> Iterator[PostgresqlServer]:
    """A PostgreSQL of this file's own, in which databases are made."""
    with postgresql_server() as server:
        yield server


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "sqlite":
        for place in ("var/lib/roost", "var/backups/roost"):
            (tmp_path / place).mkdir(parents=True)
        address = f"sqlite://{tmp_path}/var/lib/roost/responses.db"
        return Store(address, address, tmp_path, commands("SQLite"))
    if not all(map(shutil.which, ("pg_dump", "pg_restore", "createdb", "psql"))):
        pytest.skip("PostgreSQL's clients are not installed")
    url = request.getfixturevalue("database_server").url
    return Store(url, url.replace("/postgres", "/roost_restored"), tmp_path, commands("PostgreSQL"))


def stored(server: ServerProcess, **fields: Any) -> str:
    """Returns the id of a new stored response."""
    return str(respond(server, **fields).raise_for_status().json()["id"])


def read(server: ServerProcess, response_id: str) -> httpx.Response:
    return httpx.get(f"{server.url}/v1/responses/{response_id}", timeout=60)


def check_owner(store: Store) -> None:
    """A backup is its owner's only."""
    (file,) = [path for path in store.folder.rglob("*") if path.suffix == ".dump" or "backups/roost/" in str(path)]
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_backup_of_a_running_server_is_restored(tiny_config: Path, store: Store) -> None:
    model, (backup, restore) = f"random:{tiny_config}", store.commands
    with ExitStack() as stack:
        server = stack.enter_context(launched(model, *SIMULATED, ROOST_STORE=store.address))
        kept = stored(server)
        running = stored(server, background=True, max_output_tokens=10_000_000)  # it runs until it is cancelled
        store.run(backup)
        check_owner(store)
        lost = stored(server)
        assert read(server, lost).status_code == 200
        server.process.kill()  # so that SQLite's file has commits of after the backup beside it
        server.ends()
    store.run(restore)
    with serving(model, *SIMULATED, ROOST_STORE=store.restored, ROOST_DRAIN_TIMEOUT="0") as server:
        assert read(server, kept).status_code == 200
        assert read(server, lost).status_code == 404
        assert read(server, running).json()["status"] in ("queued", "in_progress")
        wait_for_line(server, f"continues {running} exactly")
        ended = httpx.post(f"{server.url}/v1/responses/{running}/cancel", timeout=60)
        assert ended.json()["status"] == "cancelled"
        stored(server)


def test_the_versions_of_tables_are_read(store: Store) -> None:
    opened(store.address).close()
    program = "python3 -m sqlite3" if store.address.startswith("sqlite") else "psql"
    (command,) = re.findall(rf"^{program} .*$", (PAGES / "upgrades.md").read_text(), re.MULTILINE)
    written = re.sub(r"\W+", " ", store.run(command))
    for feature in load_features():
        if feature.tables is not None:
            assert f"{feature.name} {feature.tables.version} {feature.tables.upgrades[-1].oldest} " in written
