"""Batches of real servers: replicas that are killed, cancelled batches, lines that give way, and a large file.

`BATCH_ROUNDS=5 python3 dev.py test-robust tests/e2e/test_server_batches.py` kills replicas in five rounds.
"""

import os
import random
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from server_process import PROGRAM, SHAPES, SLOTS, ServerProcess, launched, metric, until

pytestmark = [pytest.mark.robust, pytest.mark.timeout(1800)]

FAULTY = str(Path(__file__).parent / "faulty_server.py")
URL, RESPONSES_URL = "/v1/completions", "/v1/responses"
NUM_LINES = 2000
ROUNDS = int(os.environ.get("BATCH_ROUNDS", "1"))

MIB = 2**20


PATIENT = """
from roost.server.__main__ import main
from roost.server.http.connection import BodyPace, LimitedConnection

LimitedConnection.pace = BodyPace(idle_s=600.0, part_s=600.0)
main()
"""
"""A server that waits longer for a body: a gigabyte takes a busy machine more than the usual minute."""


@contextmanager
def replica(tiny_config: Path, address: str, program: Sequence[str] = PROGRAM) -> Iterator[ServerProcess]:
    arguments = (f"random:{tiny_config}", *SHAPES, "--access-log", "off")
    with launched(*arguments, program=program, programs="tiny", ROOST_STORE=address) as server:
        yield server


def line(number: int, tokens: int) -> bytes:
    """Returns a greedy line or a seeded one; every group of twenty has a common prefix."""
    sampling = {"temperature": 0} if number % 2 else {"seed": number}
    prompt = f"group {number % 100} " * 8 + f"the number {number}"
    body = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, **sampling}
    fields = {"custom_id": f"line {number}", "method": "POST", "url": URL, "body": body}
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def upload(server: ServerProcess, lines: Sequence[bytes]) -> str:
    files = {"file": ("in.jsonl", b"".join(lines))}
    response = httpx.post(f"{server.url}/v1/files", files=files, data={"purpose": "batch"}, timeout=120)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def begin(server: ServerProcess, file_id: str, url: str = URL) -> str:
    body = {"input_file_id": file_id, "endpoint": url, "completion_window": "24h"}
    return str(httpx.post(f"{server.url}/v1/batches", json=body, timeout=60).json()["id"])


def look(server: ServerProcess, batch_id: str) -> dict[str, Any]:
    return httpx.get(f"{server.url}/v1/batches/{batch_id}", timeout=30).json()


def wait_for(server: ServerProcess, batch_id: str, num_lines: int) -> None:
    """Waits until so many lines have ended."""
    until(lambda: look(server, batch_id)["request_counts"]["completed"] >= num_lines, seconds=600)


def texts(server: ServerProcess, batch: dict[str, Any]) -> dict[str, str]:
    """Returns the texts of a batch's output by `custom_id`."""
    return {name: body["choices"][0]["text"] for name, body in output_bodies(server, batch).items()}


def output_bodies(server: ServerProcess, batch: dict[str, Any]) -> dict[str, Any]:
    """Returns the responses of a batch's output by `custom_id`. No line may occur twice."""
    found: dict[str, Any] = {}
    content = httpx.get(f"{server.url}/v1/files/{batch['output_file_id']}/content", timeout=60).content
    for each in map(orjson.loads, content.splitlines()):
        assert each["custom_id"] not in found
        assert each["response"]["status_code"] == 200
        found[each["custom_id"]] = each["response"]["body"]
    return found


def run(server: ServerProcess, file_id: str, num_lines: int) -> dict[str, str]:
    """Returns the texts of a batch that runs undisturbed."""
    batch_id = begin(server, file_id)
    wait_for(server, batch_id, num_lines)
    return texts(server, look(server, batch_id))


@pytest.mark.parametrize("turn", range(ROUNDS))
def test_each_line_has_one_response_whatever_dies(tiny_config: Path, address: str, turn: int) -> None:
    """Two of three replicas are killed at random moments; another one starts."""
    draw, lines = random.Random(turn), [line(number, 2 + number % 11) for number in range(NUM_LINES)]
    with ExitStack() as stack:
        replicas = [stack.enter_context(replica(tiny_config, address)) for _ in range(3)]
        file_id = upload(replicas[0], lines)
        batch_id, done = begin(replicas[0], file_id), 0
        for _ in range(2):
            done += draw.randrange(100, 700)
            wait_for(replicas[-1], batch_id, done)
            victim = replicas.pop(draw.randrange(len(replicas)))
            victim.process.send_signal(signal.SIGKILL)
            victim.ends()
        (left,) = replicas
        wait_for(left, batch_id, NUM_LINES)
        batch = look(left, batch_id)
        assert batch["status"] == "completed"
        assert batch["request_counts"] == {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}
        found = texts(left, batch)
        assert found.keys() == {f"line {number}" for number in range(NUM_LINES)}
        assert found == run(left, file_id, NUM_LINES)


NUM_KILLS = 20
MOMENTS = ("keeping", "kept", "ending")
EFFECTS: tuple[dict[str, Any], ...] = ({}, {"conversation": True}, {"conversation": True, "store": False})
NUM_EFFECTS = 5 * NUM_KILLS


@pytest.mark.parametrize("address", ["sqlite"], indirect=True)
def test_lines_of_responses_act_once_whatever_dies(tiny_config: Path, address: str) -> None:
    """A replica is killed at each of three moments, again and again, until it has been killed twenty times.

    Its lines count as given back, so that no line runs alone and no lease has to end.
    """
    conversations: list[str] = []
    for number in range(NUM_KILLS):
        fault = f"effect-{MOMENTS[number % len(MOMENTS)]}-{2 if number % len(MOMENTS) == 2 else 4}"
        with replica(tiny_config, address, (FAULTY, fault)) as server:
            if not conversations:
                for _ in range(NUM_EFFECTS):
                    made = httpx.post(f"{server.url}/v1/conversations", json={}, timeout=60).json()
                    conversations.append(made["id"])
                file_id = upload(server, [line_of_response(*each) for each in enumerate(conversations)])
                with suppress(httpx.TransportError):
                    begin(server, file_id, RESPONSES_URL)
            assert server.ends() == -signal.SIGKILL
        with closing(sqlite3.connect(address.removeprefix("sqlite://"), timeout=30)) as database, database:
            database.execute("UPDATE roost_lines SET owner = NULL, lease_until = 0")
    with replica(tiny_config, address) as server:
        (batch,) = httpx.get(f"{server.url}/v1/batches", timeout=60).json()["data"]
        print(f"{batch['request_counts']['completed']} of {NUM_EFFECTS} lines had ended after {NUM_KILLS} kills")
        assert batch["status"] == "in_progress"
        wait_for(server, batch["id"], NUM_EFFECTS)
        responses = output_bodies(server, look(server, batch["id"]))
        for number, conversation in enumerate(conversations):
            check_effects(server, number, conversation, responses[f"line {number}"])
    with closing(sqlite3.connect(address.removeprefix("sqlite://"))) as database:
        stored = {response_id for (response_id,) in database.execute("SELECT id FROM roost_responses")}
    assert stored == {each["id"] for each in responses.values() if each["store"]}


def line_of_response(number: int, conversation: str) -> bytes:
    fields = EFFECTS[number % len(EFFECTS)]
    body = {"input": f"number {number}", "max_output_tokens": 4, "ignore_eos": True, **fields}
    body |= {"conversation": conversation} if "conversation" in fields else {}
    request = {"custom_id": f"line {number}", "method": "POST", "url": RESPONSES_URL, "body": body}
    return orjson.dumps(request, option=orjson.OPT_APPEND_NEWLINE)


def check_effects(server: ServerProcess, number: int, conversation: str, response: dict[str, Any]) -> None:
    """Checks that a line's response is stored as it was returned, and is one turn of its conversation."""
    fields = EFFECTS[number % len(EFFECTS)]
    if fields.get("store", True):
        assert httpx.get(f"{server.url}/v1/responses/{response['id']}", timeout=60).json() == response
    items = httpx.get(f"{server.url}/v1/conversations/{conversation}/items", timeout=60).json()["data"]
    if "conversation" in fields:
        answer, said = items
        assert (answer, said["content"][0]["text"]) == (response["output"][0], f"number {number}")
    else:
        assert not items


@pytest.mark.parametrize("address", ["sqlite"], indirect=True)
def test_lines_give_way_and_have_the_texts_of_undisturbed_ones(tiny_config: Path, address: str) -> None:
    """Other requests come while lines have all slots."""
    lines = [line(number, 4000) for number in range(2 * SLOTS)]
    with replica(tiny_config, address) as server:
        file_id = upload(server, lines)
        alone = run(server, file_id, len(lines))
        assert metric(server, "roost_batch_preemptions_total") == 0
        batch_id = begin(server, file_id)
        while metric(server, "roost_batch_requests_running") < SLOTS:
            assert look(server, batch_id)["status"] == "in_progress"
            time.sleep(0.01)
        while look(server, batch_id)["status"] == "in_progress":
            response = httpx.post(f"{server.url}{URL}", json={"prompt": "a", "max_tokens": 4}, timeout=30)
            assert response.status_code == 200, response.text
        assert metric(server, "roost_batch_preemptions_total") > 0
        assert texts(server, look(server, batch_id)) == alone


@pytest.mark.parametrize("address", ["sqlite"], indirect=True)
def test_batches_are_cancelled_at_random_moments(tiny_config: Path, address: str) -> None:
    """What had ended is kept, no line ends later, and the slots become free."""
    draw, lines = random.Random(5), [line(number, 2 + number % 60) for number in range(200)]
    lines += [line(number, 1_000_000) for number in range(200, 200 + 2 * SLOTS)]  # no batch ends before it is cancelled
    with replica(tiny_config, address) as server:
        file_id = upload(server, lines)
        for _ in range(8):
            batch_id = begin(server, file_id)
            wait_for(server, batch_id, draw.choice((0, 1, draw.randrange(2, 150))))
            time.sleep(draw.random() / 10)
            batch = httpx.post(f"{server.url}/v1/batches/{batch_id}/cancel", timeout=60).json()
            completed = batch["request_counts"]["completed"]
            assert (batch["status"], batch["request_counts"]["failed"]) == ("cancelled", 0)
            if completed:
                assert len(texts(server, batch)) == completed
            else:
                assert batch["output_file_id"] is None
            until(lambda server=server: not metric(server, "roost_batch_requests_running"))
            assert look(server, batch_id) == batch


@pytest.mark.parametrize("address", ["sqlite"], indirect=True)
def test_a_batch_expires_while_it_runs(tiny_config: Path, address: str) -> None:
    """What had ended is kept, every other line says why it did not run, and lines that run then end as usual."""
    lines = [line(number, 200) for number in range(200)]
    with replica(tiny_config, address) as server:
        batch_id = begin(server, upload(server, lines))
        wait_for(server, batch_id, 20)
        with closing(sqlite3.connect(address.removeprefix("sqlite://"), timeout=30)) as database, database:
            database.execute("UPDATE roost_batches SET expires = 0")
        until(lambda: look(server, batch_id)["status"] != "in_progress")
        batch = look(server, batch_id)
        counts = batch["request_counts"]
        assert (batch["status"], counts["total"]) == ("expired", counts["completed"] + counts["failed"])
        assert min(counts["completed"], counts["failed"]) > 0
        failed = error_lines(server, batch)
        assert {each["error"]["code"] for each in failed} == {"batch_expired"}
        names = {each["custom_id"] for each in failed}
        assert len(failed) == len(names) == counts["failed"]
        assert names | texts(server, batch).keys() == {f"line {number}" for number in range(len(lines))}


def error_lines(server: ServerProcess, batch: dict[str, Any]) -> list[dict[str, Any]]:
    content = httpx.get(f"{server.url}/v1/files/{batch['error_file_id']}/content", timeout=60).content
    return [dict(orjson.loads(each)) for each in content.splitlines()]


@pytest.mark.parametrize("address", ["sqlite"], indirect=True)
def test_a_batch_waits_while_nothing_can_be_written(tiny_config: Path, address: str) -> None:
    """The system refuses the database's files to grow. Uploads fail with a clear error, and the batch ends later."""
    lines, path = [line(number, 2) for number in range(600)], Path(address.removeprefix("sqlite://"))
    with replica(tiny_config, address) as server:
        file_id = upload(server, lines)
        batch_id = begin(server, file_id)
        wait_for(server, batch_id, 50)
        before = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        index = path.with_name(f"{path.name}-shm").stat().st_size  # which readers make again after a fault
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (index, before[1]))
        files = {"file": ("in.jsonl", b"".join(lines))}
        refused = httpx.post(f"{server.url}/v1/files", files=files, data={"purpose": "batch"}, timeout=120)
        assert refused.status_code in (503, 507), refused.text
        assert refused.json()["error"]["message"].startswith("the store")
        assert look(server, batch_id)["status"] == "in_progress"
        assert look(server, batch_id)["output_file_id"] is None
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, before)
        wait_for(server, batch_id, len(lines))
        assert len(texts(server, look(server, batch_id))) == len(lines)
        log = server.log.read_text()
        assert "the store's file cannot be used" in log
        assert "Traceback" not in log


NUM_MIB = 1024
MAX_GROWTH_MIB = 200


@pytest.mark.parametrize("address", ["sqlite"], indirect=True)
def test_a_gigabyte_passes_in_flat_memory(tiny_config: Path, address: str) -> None:
    """The file is uploaded, checked and ordered, then downloaded and deleted."""
    with replica(tiny_config, address, ("-c", PATIENT)) as server:
        warm = upload(server, [line(number, 1) for number in range(2000)])
        httpx.delete(f"{server.url}/v1/files/{warm}", timeout=60).raise_for_status()
        before = resident_bytes(server)
        with watched(server) as peaks:
            headers = {"content-type": "multipart/form-data; boundary=b"}
            response = httpx.post(f"{server.url}/v1/files", headers=headers, content=big_form(), timeout=1200)
            assert response.status_code == 200, response.text
            file = response.json()
            assert file["bytes"] >= 10**9
            num_bytes = 0
            with httpx.stream("GET", f"{server.url}/v1/files/{file['id']}/content", timeout=120) as content:
                for piece in content.iter_raw():
                    num_bytes += len(piece)
            assert num_bytes == file["bytes"]
            httpx.delete(f"{server.url}/v1/files/{file['id']}", timeout=60).raise_for_status()
        assert (max(peaks) - before) / MIB < MAX_GROWTH_MIB


def big_form() -> Iterator[bytes]:
    """Yields a form with a file of a gigabyte, of lines of a kilobyte."""
    yield b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
    filler = "x" * 930
    for first in range(0, NUM_MIB * 1024, 1024):
        yield b"".join(
            b'{"custom_id":"%d","method":"POST","url":"%s","body":{"prompt":"%d %s"}}\n'
            % (number, URL.encode(), number % 1000, filler.encode())
            for number in range(first, first + 1024)
        ).ljust(MIB, b"\n")
    yield b"\r\n--b--\r\n"


def resident_bytes(server: ServerProcess) -> int:
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def watched(server: ServerProcess) -> Iterator[list[int]]:
    """Yields a list that receives the server's memory again and again."""
    peaks, is_over = [resident_bytes(server)], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.05):
            peaks.append(resident_bytes(server))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        is_over.set()
        thread.join()
