"""Servers of different versions on one database: older ones of this repository's history, and a made-up later one."""

import io
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from databases import drop_tables, opened, upgrade_further
from roost.server.feature import load_features
from roost.server.features.batches.tables import TABLES as BATCHES
from roost.server.features.responses.tables import TABLES as RESPONSES
from server_process import ServerProcess, serving, start

ROOT = Path(__file__).resolve().parents[2]
SIMULATED = ("--simulate", "v5e")

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
def older(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder that makes the tree before the latest upgrade of the batches' tables importable as `roost`."""
    path = "server/features/batches/tables.py"
    try:
        is_shallow = git("rev-parse", "--is-shallow-repository").strip() == b"true"
        commits = git("log", "--format=%H", "-S_TURNS", "--", path).split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout")
    if is_shallow or not commits:
        pytest.skip("the history is missing")
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(fileobj=io.BytesIO(git("archive", f"{commits[-1].decode()}^"))) as archive:
        archive.extractall(folder / "roost", filter="data")
    assert "_TURNS" not in (folder / "roost" / path).read_text()
    return str(folder)


def respond(server: ServerProcess) -> str:
    """Returns the id of a new stored response."""
    body = {"input": "hi", "max_output_tokens": 2, "ignore_eos": True}
    response = httpx.post(f"{server.url}/v1/responses", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def read(server: ServerProcess, response_id: str) -> httpx.Response:
    return httpx.get(f"{server.url}/v1/responses/{response_id}", timeout=60)


def run_batch(server: ServerProcess) -> dict[str, Any]:
    """Returns the counts of a batch of 20 lines that has ended."""
    with httpx.Client(base_url=f"{server.url}/v1", timeout=60) as client:
        text = "\n".join(LINE.replace('"a"', f'"{number}"') for number in range(20))
        file = client.post("/files", files={"file": ("in.jsonl", text)}, data={"purpose": "batch"}).json()["id"]
        body = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
        batch = client.post("/batches", json=body).json()
        deadline = time.monotonic() + 120
        while batch["status"] == "in_progress":
            assert time.monotonic() < deadline, batch
            time.sleep(0.1)
            batch = client.get(f"/batches/{batch['id']}").json()
    return dict(batch["request_counts"])


def refusal(model: str, store: str, **environment: Any) -> str:
    """Returns what a server writes that does not start."""
    process = start("serve", model, *SIMULATED, "--port", "0", ROOST_STORE=store, **environment)
    _, written = process.communicate(timeout=120)
    assert process.returncode == 1, written
    assert "Traceback" not in written
    return written


def test_an_older_server_runs_beside_this_one_and_after_it(tiny_config: Path, store: str, older: str) -> None:
    """A fleet is rolled over, and then rolled back."""
    model, all_run = f"random:{tiny_config}", {"total": 20, "completed": 20, "failed": 0}
    with serving(model, *SIMULATED, ROOST_STORE=store, PYTHONPATH=older) as old:
        before = respond(old)
        with serving(model, *SIMULATED, ROOST_STORE=store) as new:
            for server, other in ((old, new), (new, old)):
                assert read(server, before).status_code == 200
                assert read(other, respond(server)).status_code == 200
                assert run_batch(server) == all_run
            after = respond(new)
    with serving(model, *SIMULATED, ROOST_STORE=store, PYTHONPATH=older) as old:
        assert read(old, after).status_code == 200
        assert run_batch(old) == all_run


def test_this_server_goes_on_after_a_later_one_has_expanded_all_tables(tiny_config: Path, store: str) -> None:
    """Its statements name their columns. It also starts then, as after a rollback."""
    model, all_run = f"random:{tiny_config}", {"total": 20, "completed": 20, "failed": 0}
    with serving(model, *SIMULATED, ROOST_STORE=store) as server:
        before = respond(server)
        for feature in load_features():
            if feature.tables is not None:
                made = [
                    each.split()[2] for step in feature.tables.upgrades for each in step.statements if "TABLE" in each
                ]
                added = [f"ALTER TABLE {name} ADD COLUMN later TEXT" for name in sorted(set(made))]
                upgrade_further(store, feature.tables, *added, oldest=feature.tables.upgrades[-1].oldest)
        assert read(server, respond(server)).status_code == 200
        assert run_batch(server) == all_run
    with serving(model, *SIMULATED, ROOST_STORE=store) as server:
        assert read(server, before).status_code == 200
        assert run_batch(server) == all_run


def test_a_later_server_that_contracts_tables_stops_this_one(tiny_config: Path, store: str) -> None:
    model, known = f"random:{tiny_config}", len(RESPONSES.upgrades)
    with serving(model, *SIMULATED, ROOST_STORE=store) as server:
        stored = respond(server)
        upgrade_further(store, RESPONSES, "UPDATE roost_responses SET num_stalls = 0", oldest=known + 1)
        refused = read(server, stored)
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


def test_a_later_server_that_contracts_tables_keeps_an_older_one_from_starting(
    tiny_config: Path, store: str, older: str
) -> None:
    opened(store).close()
    known = len(BATCHES.upgrades)
    upgrade_further(store, BATCHES, "UPDATE roost_batches SET claimed = 0", oldest=known + 1)
    line = refusal(f"random:{tiny_config}", store, PYTHONPATH=older).splitlines()[-1]
    assert f"the store's tables of batches have version {known + 1}, and this server knows up to " in line
