"""Three replicas behind nginx on a PostgreSQL that fails over, under load, while replicas die and keys are rotated.

`CHAOS_MINUTES=10 python3 dev.py test-robust tests/e2e/test_failovers.py` has two failovers, four deaths, two rotations
of keys and a reload of the proxy in ten minutes, instead of one of each in as little time as they take.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from failover import POOLER, PostgresqlPair, postgresql_pair, query, until
from lasting_clients import KINDS, Client, Traffic
from ports import free_port
from proxies import nginx
from server_process import SHAPES, ServerProcess, launched, metric

pytestmark = [pytest.mark.robust, pytest.mark.timeout(2400)]

MINUTES = float(os.environ.get("CHAOS_MINUTES", "0"))
SHORT = ("kill", "fail_over", "rotate_keys", "reload_proxy")
LONG = ("kill", "fail_over", "rotate_keys", "kill", "reload_proxy", "kill", "fail_over", "rotate_keys", "kill")
NUM_RUNNING = "SELECT count(*) FROM roost_responses WHERE is_running = 1"
CLIENTS = ("chat", "chat stream", "followed stream", "followed stream", "background response", "batch")


@dataclass
class Fleet:
    """Replicas on ports of their own, and all that goes wrong with them.

    Attributes:
      traffic: What the clients see.
      keys: File of API keys: of the clients' one, and the one before.
      running: The replica on each port.
    """

    stack: ExitStack
    folder: Path
    pair: PostgresqlPair
    traffic: Traffic
    proxy: "subprocess.Popen[str]"
    running: dict[int, ServerProcess] = field(default_factory=dict)
    names: list[str] = field(default_factory=lambda: ["key-0"])

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    def start(self, port: int) -> None:
        """Starts a replica of the demo model."""
        options = ("--served-model-name", "demo", "--api-key-file", str(self.keys), "--access-log", "off")
        states = ("--state-store", str(self.folder / "states"), "--checkpoint-seconds", "1")
        server = launched(*SHAPES, *options, *states, programs="chaos", port=port, ROOST_STORE=self.pair.url)
        self.running[port] = self.stack.enter_context(server)

    def kill(self) -> None:
        """Kills the replica that runs most requests, and starts it again."""
        port = max(self.running, key=lambda each: metric(self.running[each], "roost_num_requests_running"))
        victim = self.running.pop(port)
        victim.process.send_signal(signal.SIGKILL)
        victim.ends()
        check_log(victim)
        self.start(port)

    def fail_over(self) -> None:
        """Moves the primary, once a client has been refused for its absence."""
        refused = self.traffic.refusals["503 store_unavailable"]
        self.pair.fail_over(lambda: self.traffic.refusals["503 store_unavailable"] > refused)

    def rotate_keys(self) -> None:
        """Adds a key, gives it to the clients, and removes the one before the last."""
        removed, kept = self.names[:-1], self.names[-1]
        self.names = [kept, f"key-{int(kept.removeprefix('key-')) + 1}"]
        self.write_keys()
        for server in self.running.values():
            server.process.send_signal(signal.SIGHUP)
        wanted = {**dict.fromkeys(self.names, 200), **dict.fromkeys(removed, 401)}
        for server in self.running.values():
            for key, status in wanted.items():
                until(lambda server=server, key=key, status=status: status_of(server, key) == status)
        self.traffic.key = self.names[-1]

    def write_keys(self) -> None:
        new = self.keys.with_name("new")
        new.write_text("".join(f"alice:{each}\n" for each in self.names))
        new.rename(self.keys)

    def reload_proxy(self) -> None:
        """Reloads the proxy's configuration, whose old workers end when their connections have."""
        before = workers(self.proxy)
        self.proxy.send_signal(signal.SIGHUP)
        until(lambda: workers(self.proxy) - before)


def check_log(server: ServerProcess) -> None:
    written = server.log.read_text()
    assert "Traceback" not in written, written[written.index("Traceback") :]


def status_of(server: ServerProcess, key: str) -> int:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.get(f"{server.url}/v1/models", headers=headers, timeout=30).status_code


def workers(process: "subprocess.Popen[str]") -> set[str]:
    return set(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    ports = [free_port() for _ in range(3)]
    port = free_port()
    with postgresql_pair() as pair, ExitStack() as stack:
        proxy = stack.enter_context(nginx([f"127.0.0.1:{each}" for each in ports], tmp_path, port))
        fleet = Fleet(stack, tmp_path, pair, Traffic(f"http://127.0.0.1:{port}", "key-0"), proxy)
        fleet.write_keys()
        for each in ports:
            fleet.start(each)
        yield fleet


@contextmanager
def working(traffic: Traffic) -> Iterator[Callable[[], None]]:
    """Runs clients until the `with` block ends; yields a function that waits until each kind has ended more work."""
    with ThreadPoolExecutor(len(CLIENTS)) as threads, ExitStack() as stack:
        clients = [stack.enter_context(Client(traffic, kind)) for kind in CLIENTS]
        futures = [threads.submit(each.run) for each in clients]

        def progress() -> None:
            before = traffic.counts.copy()
            while not all(traffic.counts[kind] > before[kind] for kind in KINDS):
                for each in futures:
                    assert not each.done(), each.result()
                time.sleep(0.1)

        try:
            yield progress
        finally:
            traffic.is_over.set()
        for each in futures:
            each.result()


def test_nothing_is_lost_whatever_fails(fleet: Fleet) -> None:
    """Each response, stream and batch has the text of an undisturbed one, and stays; refusals say when to come back."""
    traffic, started = fleet.traffic, time.monotonic()
    disturbances = LONG if MINUTES else SHORT
    with working(traffic) as progress:
        for number, name in enumerate(disturbances):
            progress()
            time.sleep(max(started + 60 * MINUTES * number / len(disturbances) - time.monotonic(), 0))
            getattr(fleet, name)()
        progress()
        time.sleep(max(started + 60 * MINUTES - time.monotonic(), 0))
    report(fleet, disturbances, time.monotonic() - started)
    check_kept(traffic)
    check_texts(traffic)
    until(lambda: query(fleet.pair.primary, NUM_RUNNING) == [(0,)])
    num_breaks = sum(name in ("kill", "reload_proxy") for name in disturbances)
    assert traffic.cuts.total() <= num_breaks * len(CLIENTS)
    for server in fleet.running.values():
        check_log(server)


def check_kept(traffic: Traffic) -> None:
    """Checks that all that clients have read is still there."""
    with Client(traffic, "chat") as client:
        for place, content in traffic.kept.items():
            assert client.send("GET", place).content == content


def check_texts(traffic: Traffic) -> None:
    """Checks that all texts are those of undisturbed requests."""
    undisturbed = Traffic(traffic.url, traffic.key)
    for kind, case in sorted(traffic.texts):
        with Client(undisturbed, kind) as client:
            assert traffic.texts[kind, case] == {KINDS[kind](client, case)}, (kind, case)
    assert not undisturbed.refusals


def report(fleet: Fleet, disturbances: tuple[str, ...], seconds: float) -> None:
    """Prints the figures of benchmarks/robustness.md."""
    traffic = fleet.traffic
    print(f"\n{seconds:.0f} s, {', '.join(disturbances)}, PgBouncer: {POOLER is not None}, load {os.getloadavg()}")
    for kind in KINDS:
        print(f"{kind}: {traffic.counts[kind]}, longest pause {traffic.longest_s[kind]:.1f} s")
    ((num_stored,),) = query(fleet.pair.primary, "SELECT count(*) FROM roost_responses")
    print(f"responses stored: {num_stored}")
    print(f"refused: {dict(traffic.refusals)}, cut off: {dict(traffic.cuts)}, kept: {len(traffic.kept)}")
