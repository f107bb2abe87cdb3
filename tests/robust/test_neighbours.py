"""Each attack of `tests/robust/attacks.py` for a second or two, while another tenant's requests run.

`tests/robust/neighbours.py` measures times. Here everything is a count: tokens that the engine processes before a
victim's first token and during a victim's batch, work of the event loop between two events, and bytes held. The
victim's outputs must equal those of an idle server. An attack that needs a store has a server and a database of its
own, which has to end when it is asked to.
"""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import attacks
import neighbours
import pytest
from shared_programs import compiled_once

pytestmark = [pytest.mark.robust, pytest.mark.timeout(900)]

WATCHED = str(Path(__file__).with_name("watched_server.py"))
SECONDS: Final = 1.5

MAX_WORK: Final = 8 * 512
"""Tokens that the engine may process between the arrival of a victim's stream and its first token: 8 prefill steps of
the default size. Some steps pass while the server reads the request and sends the token.
"""

MAX_BATCH_WORK: Final = 3 * 8 * 32 * 512
"""Tokens that the engine may process from the upload of a victim's batch to its end, its own ones included.

Its lines run in three rounds at most, as one tenant leaves an eighth of the places to others. Each generates 8 tokens,
between two of which the engine prefills for as long as 32 decode steps while no stream runs.
"""

MAX_OCCUPANCY: Final = 60
"""Units of `watched_server.py`, six million additions, that the event loop may work without a pause, or the engine from
the end of one step to the end of the next.
"""


class House:
    """A server, a victim with known outputs, and an attacker.

    All are replaced after an attack that broke something, so that no other attack is blamed for it.
    """

    def __init__(self, file: Path) -> None:
        self._runner = asyncio.Runner()
        self._file = file
        self._stack: ExitStack | None = None

    def attack(self, attack: Any) -> list[str]:
        """Returns what the attack broke, one problem per line."""
        if self._stack is not None and attack.needs_store:
            self.close()
        if self._stack is None:
            self._open(has_store=attack.needs_store)
        problems = self._runner.run(self._attack(attack))
        if attack.needs_store and self._server.status is None and (status := self._server.stop()) != 0:
            problems.append(f"asked to end, the server left with status {status}")
        if problems or attack.needs_store:
            self.close()
        return problems

    def close(self) -> None:
        if self._stack is not None:
            self._stack.close()
        self._stack = None

    def _open(self, *, has_store: bool) -> None:
        with ExitStack() as stack:
            with compiled_once("demo-all"):
                store = stack.enter_context(neighbours.sqlite_store()) if has_store else None
                self._server = stack.enter_context(neighbours.serving((WATCHED, str(self._file)), store=store))
            self._victim = neighbours.Victim(self._server)
            stack.callback(lambda: self._runner.run(self._victim.close()))
            self._attacker = stack.enter_context(self._entered(neighbours.attacking()))
            self._runner.run(self._victim.learn())
            self._runner.run(self._victim.watch(1))
            assert self._counts()["wait"], "the server does not count what passes before the victim's first tokens"
            self._start_bytes = self._server.resident_bytes()
            self._stack = stack.pop_all()

    @contextmanager
    def _entered(self, manager: Any) -> Iterator[Any]:
        """Enters an asynchronous context from a synchronous test."""
        yield self._runner.run(manager.__aenter__())
        self._runner.run(manager.__aexit__(None, None, None))

    async def _attack(self, attack: Any) -> list[str]:
        self._counts()
        reason = await self._attacker.prepare(attack, self._server)
        if reason is not None:
            return [reason]
        window, _, problems = await neighbours.attack_once(attack, self._server, self._victim, self._attacker, SECONDS)
        if self._server.status is not None:
            return list(problems)
        counts = self._counts()
        limits = (
            ("tokens before a first token of the victim", counts["wait"], MAX_WORK),
            ("units of work of the event loop at a stretch", counts["loop"], MAX_OCCUPANCY),
            ("units of work of the engine in one step", counts["engine"], MAX_OCCUPANCY),
            ("tokens during a batch of the victim", most_work(window), MAX_BATCH_WORK),
            ("bytes of the database", window.stored_bytes, sum(neighbours.STORE_BUDGETS.values())),
            ("bytes more than at the start", window.peak_bytes - self._start_bytes, neighbours.memory_budget(attack)),
        )
        return [*problems, *(f"{count:,} {what}, at most {most:,}" for what, count, most in limits if count > most)]

    def _counts(self) -> dict[str, int]:
        """Returns the maximum of each count of the server since the last call."""
        most = {"loop": 0, "engine": 0, "wait": 0}
        for line in self._file.read_text().splitlines():
            what, count = line.split()
            most[what] = max(most[what], int(count))
        self._file.write_text("")
        return most


def most_work(window: Any) -> int:
    """Returns the most tokens that the engine has processed during a batch of the victim."""
    return max((run.num_tokens for run in window.batches), default=0)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("neighbours") / "counts")
    yield house
    house.close()


@pytest.mark.parametrize("attack", attacks.ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_hurts_nobody_else(house: House, attack: Any) -> None:
    problems = house.attack(attack)
    assert not problems, "\n".join(problems)
