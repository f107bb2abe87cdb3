"""Servers of different versions on one database: a former one of this repository's history, and a made-up later one."""

import io
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from databases import drop_tables, table_names, upgrade_further
from roost.server.database.address import StoreAddress
from roost.server.database.database import Database, Transaction, dialect_of
from roost.server.feature import load_features
from roost.server.features.batches.batch_table import TABLES as BATCHES
from roost.server.features.responses.response_table import TABLES as RESPONSES
from server_process import SIMULATED, ServerProcess, respond, serving, start, until

ROOT = Path(__file__).resolve().parents[2]
LINE = '{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "hi", "max_tokens": 2}}'


@pytest.fixture(params=[pytest.param("sqlite", marks=pytest.mark.robust), "postgresql"], name="address")
def address_of_fleet(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of a store in each kind of database; by default in PostgreSQL, which fleets share."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path / 'store.db'}"
    return str(request.getfixturevalue("postgresql").url)


@pytest.fixture
def store(address: str) -> Iterator[str]:
    """Address of a database without tables."""
    drop_tables(address)
    yield address
    drop_tables(address)


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder that makes the last tree importable as `roost` from whose tables no upgrade leads on."""
    features, introduced = "server/features", f"first={BATCHES.first}"
    try:
        is_shallow = git("rev-parse", "--is-shallow-repository").strip() == b"true"
        commits = git("log", "--format=%H", f"-S{introduced}", "--", features).split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout")
    if is_shallow or not commits:
        pytest.skip("the history is missing")
    folder = tmp_path_factory.mktemp("former")
    with tarfile.open(fileobj=io.BytesIO(git("archive", f"{commits[-1].decode()}^"))) as archive:
        archive.extractall(folder / "roost", filter="data")
    assert not any(introduced in path.read_text() for path in (folder / "roost" / features).rglob("*.py"))
    return str(folder)


def stored(server: ServerProcess) -> str:
    """Returns the id of a new stored response."""
    return str(respond(server).raise_for_status().json()["id"])


def read(server: ServerProcess, response_id: str) -> httpx.Response:
    return httpx.get(f"{server.url}/v1/responses/{response_id}", timeout=60)


def run_batch(server: ServerProcess) -> dict[str, Any]:
    """Returns the counts of a batch of 20 lines that has ended."""
    with httpx.Client(base_url=f"{server.url}/v1", timeout=60) as client:
        text = "\n".join(LINE.replace('"a"', f'"{number}"') for number in range(20))
        file = client.post("/files", files={"file": ("in.jsonl", text)}, data={"purpose": "batch"}).json()["id"]
        body = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
        path = f"/batches/{client.post('/batches', json=body).json()['id']}"
        until(lambda: client.get(path).json()["status"] != "in_progress")
        return dict(client.get(path).json()["request_counts"])


def refusal(model: str, store: str, **environment: Any) -> str:
    """Returns what a server writes that does not start."""
    process = start("serve", model, *SIMULATED, "--port", "0", ROOST_STORE=store, **environment)
    _, written = process.communicate(timeout=120)
    assert process.returncode == 1, written
    assert "Traceback" not in written
    return written


def contents(address: str) -> dict[str, list[str]]:
    """Returns the rows of all tables of the store."""
    database = Database(dialect_of(StoreAddress.parse(address)))

    def read(transaction: Transaction) -> dict[str, list[str]]:
        names = table_names(transaction, address)
        return {name: sorted(map(repr, transaction.rows(f"SELECT * FROM {name}"))) for name in names}

    found = database.run_now(read)
    database.close()
    return found


def test_a_former_server_and_this_one_refuse_each_others_stores(tiny_config: Path, store: str, former: str) -> None:
    """Neither changes anything, so that the other one goes on."""
    model, versions = f"random:{tiny_config}", {"former": (5, 7), "this": (7, 5)}
    for maker, (found, known) in versions.items():
        drop_tables(store)
        own = {"PYTHONPATH": former} if maker == "former" else {}
        with serving(model, *SIMULATED, ROOST_STORE=store, **own) as server:
            kept = stored(server)
        before = contents(store)
        other = {} if own else {"PYTHONPATH": former}
        line = refusal(model, store, **other).splitlines()[-1]
        assert line.startswith("roost: --store ")
        assert f"the store's tables of responses have version {found}, " in line
        assert f"needs {known} or more: finish its work" in line or f"knows {known}: use the newer server" in line
        assert contents(store) == before
        with serving(model, *SIMULATED, ROOST_STORE=store, **own) as server:
            assert read(server, kept).status_code == 200


def test_this_server_goes_on_after_a_later_one_has_expanded_all_tables(tiny_config: Path, store: str) -> None:
    """Its statements name their columns. It also starts then, as after a rollback."""
    model, all_run = f"random:{tiny_config}", {"total": 20, "completed": 20, "failed": 0}
    with serving(model, *SIMULATED, ROOST_STORE=store) as server:
        before = stored(server)
        for feature in load_features():
            if feature.tables is not None:
                made = [
                    each.split()[2] for step in feature.tables.upgrades for each in step.statements if "TABLE" in each
                ]
                added = [f"ALTER TABLE {name} ADD COLUMN later TEXT" for name in sorted(set(made))]
                upgrade_further(store, feature.tables, *added, oldest=feature.tables.upgrades[-1].oldest)
        assert read(server, stored(server)).status_code == 200
        assert run_batch(server) == all_run
    with serving(model, *SIMULATED, ROOST_STORE=store) as server:
        assert read(server, before).status_code == 200
        assert run_batch(server) == all_run


def test_a_later_server_that_contracts_tables_stops_this_one(tiny_config: Path, store: str) -> None:
    model, known = f"random:{tiny_config}", RESPONSES.version
    with serving(model, *SIMULATED, ROOST_STORE=store) as server:
        kept = stored(server)
        upgrade_further(store, RESPONSES, "UPDATE roost_running SET num_deaths = 0", oldest=known + 1)
        refused = read(server, kept)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_outdated")
        ready = httpx.get(f"{server.url}/health/ready", timeout=60)
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "store_outdated")
        chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        assert httpx.post(f"{server.url}/v1/chat/completions", json=chat, timeout=60).status_code == 200
        (line,) = [line for line in server.log.read_text().splitlines() if "tables of" in line]
        found = f"have version {known + 1}, for servers that know {known + 1} or more, and this server knows {known}: "
        assert found in line
    (line,) = [line for line in refusal(model, store).splitlines() if "tables of" in line]
    assert line.startswith("roost: --store ")
    assert line.endswith(f"{found}use the newer server, or restore a backup from before its upgrade")
