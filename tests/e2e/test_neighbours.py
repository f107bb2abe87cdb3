"""Each attack of `benchmarks/attacks.py` for a second or two, while another tenant's requests run.

`benchmarks/neighbours.py` measures times. Here everything is a count: tokens that the engine processes before a
victim's first token, work of the event loop between two events, and bytes held. The victim's outputs must equal those
of an idle server.
"""

import asyncio
import importlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from shared_programs import compiled_once

pytestmark = [pytest.mark.robust, pytest.mark.timeout(240)]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WATCHED = str(Path(__file__).with_name("watched_server.py"))
SECONDS: Final = 1.5

MAX_WORK: Final = 8 * 512
"""Tokens that the engine may process between the arrival of a victim's stream and its first token: 8 prefill steps of
the default size. Some steps pass while the server reads the request and sends the token.
"""

MAX_OCCUPANCY: Final = 60
"""Units of `watched_server.py`, six million additions, that the event loop may work without a pause, or the engine from
the end of one step to the end of the next.
"""


def load(name: str) -> Any:
    """`benchmarks/` is not a package: its scripts import each other by folder."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


attacks, neighbours = load("attacks"), load("neighbours")


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
        if self._stack is None:
            self._open()
        problems = self._runner.run(self._attack(attack))
        if problems:
            self.close()
        return problems

    def close(self) -> None:
        if self._stack is not None:
            self._stack.close()
        self._stack = None

    def _open(self) -> None:
        with ExitStack() as stack:
            with compiled_once("demo-all"):
                self._server = stack.enter_context(neighbours.serving((WATCHED, str(self._file))))
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
            ("bytes more than at the start", window.peak_bytes - self._start_bytes, sum(neighbours.BUDGETS.values())),
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


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("neighbours") / "counts")
    yield house
    house.close()


@pytest.mark.parametrize("attack", attacks.ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_hurts_nobody_else(house: House, attack: Any) -> None:
    problems = house.attack(attack)
    assert not problems, "\n".join(problems)
