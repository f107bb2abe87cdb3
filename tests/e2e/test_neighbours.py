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

pytestmark = [pytest.mark.robust, pytest.mark.timeout(240)]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WATCHED = str(Path(__file__).with_name("watched_server.py"))
SECONDS: Final = 1.5

MAX_WORK: Final = 8 * 512
"""Tokens that the engine may process between a victim's request and its first token: 8 prefill steps of the default
size. Some steps pass while the victim's own HTTP requests are being sent.
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

    def __init__(self, occupancy: Path) -> None:
        self._runner = asyncio.Runner()
        self._occupancy = occupancy
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
            self._server = stack.enter_context(neighbours.serving((WATCHED, str(self._occupancy))))
            self._victim = neighbours.Victim(self._server)
            stack.callback(lambda: self._runner.run(self._victim.close()))
            self._attacker = stack.enter_context(self._entered(neighbours.attacking()))
            self._runner.run(self._victim.learn())
            self._runner.run(self._victim.watch(1))
            self._start_bytes = self._server.resident_bytes()
            self._stack = stack.pop_all()

    @contextmanager
    def _entered(self, manager: Any) -> Iterator[Any]:
        """Enters an asynchronous context from a synchronous test."""
        yield self._runner.run(manager.__aenter__())
        self._runner.run(manager.__aexit__(None, None, None))

    async def _attack(self, attack: Any) -> list[str]:
        self._occupied()
        reason = await self._attacker.prepare(attack, self._server)
        if reason is not None:
            return [reason]
        window, _, problems = await neighbours.attack_once(attack, self._server, self._victim, self._attacker, SECONDS)
        if self._server.status is not None:
            return list(problems)
        occupied = self._occupied()
        counts = (
            ("tokens before a first token of the victim", max(window.waits, default=0), MAX_WORK),
            ("units of work of the event loop at a stretch", occupied["loop"], MAX_OCCUPANCY),
            ("units of work of the engine in one step", occupied["engine"], MAX_OCCUPANCY),
            ("bytes more than at the start", window.peak_bytes - self._start_bytes, sum(neighbours.BUDGETS.values())),
        )
        return [*problems, *(f"{count:,} {what}, at most {most:,}" for what, count, most in counts if count > most)]

    def _occupied(self) -> dict[str, int]:
        """Returns the maximum units that the loop and the engine were occupied since the last call."""
        most = {"loop": 0, "engine": 0}
        for line in self._occupancy.read_text().splitlines():
            who, units = line.split()
            most[who] = max(most[who], int(units))
        self._occupancy.write_text("")
        return most


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("neighbours") / "occupancy")
    yield house
    house.close()


@pytest.mark.parametrize("attack", attacks.ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_hurts_nobody_else(house: House, attack: Any) -> None:
    problems = house.attack(attack)
    assert not problems, "\n".join(problems)
