"""Tables of records: their columns, the way of values into a database and back, pages, and deletion by parts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import pytest
from databases import drop_tables
from roost.server.database.address import StoreAddress
from roost.server.database.database import Database, dialect_of
from roost.server.database.group_commit import MAX_COMMIT
from roost.server.storage import objects
from roost.server.storage.objects import Bounds, ObjectTable, Page, PageSpec, Table


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Toy:
    tenant: str
    id: str
    created: float
    colour: Colour
    picture: bytes
    num_bytes: int
    is_new: bool = False
    name: str | None = None
    sold: float | None = None


@dataclass(frozen=True, slots=True)
class Part:
    number: int
    text: bytes


PARTS = Table("roost_toy_parts", Part, key=("tenant", "toy", "number"), under={"tenant": str, "toy": str})
TOYS = ObjectTable(
    "roost_toys",
    Toy,
    visible="created > 0",
    parts=(PARTS,),
    extra={"num_parts": int, "buyer": str | None},
    indexes={"list": "(tenant, created, id)", "age": "(created)"},
)
BEAR = Toy("a", "bear", 7.5, Colour.BLUE, b"\0\xff", 2**40, is_new=True, name="'Bear'")

type Run = Callable[..., Any]


@pytest.fixture
def run(address: str) -> Iterator[Run]:
    """Runs a function of a transaction that may write."""
    drop_tables(address)
    database = Database(dialect_of(StoreAddress.parse(address)))

    def run(work: Callable[..., Any], *values: Any, **options: Any) -> Any:
        return database.run_now(lambda each: work(each, *values, **options), writes=True)

    for statement in (*TOYS.statements, *PARTS.statements):
        run(lambda each, statement=statement: each.execute(statement))
    yield run
    database.close()
    drop_tables(address)


def rows(run: Run, query: str) -> list[tuple[Any, ...]]:
    return list(run(lambda each: each.rows(query)))


@pytest.mark.parametrize("toy", [BEAR, replace(BEAR, is_new=False, name=None, sold=0.25)])
def test_a_record_comes_back_as_it_was(run: Run, toy: Toy) -> None:
    assert run(TOYS.insert, toy) == 1
    (found,) = run(TOYS.rows, "WHERE id = ?", "bear")
    assert found == toy
    assert [type(value) for value in TOYS.values(found)] == [type(value) for value in TOYS.values(toy)]
    assert isinstance(found.colour, Colour)
    assert rows(run, "SELECT is_new, num_parts, buyer FROM roost_toys") == [(int(toy.is_new), 0, None)]


def test_a_record_is_stored_once_with_what_the_database_computes(run: Run) -> None:
    assert run(TOYS.insert, BEAR, {"buyer": "Anna"}, created="{now}", num_parts="1 + 2") == 1
    assert run(TOYS.insert, replace(BEAR, name="other")) == 0
    ((created, name, buyer, num_parts),) = rows(run, "SELECT created, name, buyer, num_parts FROM roost_toys")
    assert (name, buyer, num_parts) == (BEAR.name, "Anna", 3)
    assert created > 1e9


def test_only_what_is_visible_is_found(run: Run) -> None:
    run(TOYS.insert, BEAR)
    assert run(TOYS.find, "a", "bear") == BEAR
    assert run(TOYS.find, "b", "bear") is None
    run(TOYS.hide, "a", "bear")
    assert run(TOYS.find, "a", "bear") is None


def test_a_page_begins_after_an_entry_of_its_list(run: Run) -> None:
    toys = [replace(BEAR, id=f"toy {number}", created=1.0 + number // 2) for number in range(5)]
    for toy in (*toys, replace(BEAR, tenant="b")):
        run(TOYS.insert, toy)

    def page(*spec: Any) -> Page[Toy] | None:
        return run(TOYS.page, PageSpec(*spec), "tenant = ?", "a")

    assert page(2) == Page(toys[:2], has_more=True)
    assert page(2, "toy 2") == Page(toys[3:], has_more=False)
    assert page(2, "toy 3", True) == Page([toys[2], toys[1]], has_more=True)
    assert page(2, "bear") is None


def test_the_oldest_beyond_a_limit_are_deleted(run: Run) -> None:
    for number in range(4):
        run(TOYS.insert, replace(BEAR, id=f"{number}", created=1.0 + number, num_bytes=10))
    assert run(TOYS.beyond, "a", Bounds(3, 100)) == ["0"]
    assert run(TOYS.beyond, "a", Bounds(9, 25)) == ["0", "1"]
    assert run(TOYS.beyond, "b", Bounds(0, 0)) == []
    assert run(TOYS.expired, Bounds(9, 100), 0.0) == [("a", "0"), ("a", "1"), ("a", "2"), ("a", "3")]


def test_rows_of_more_values_than_a_statement_takes_are_inserted_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_MAX_VALUES", 9)
    parts = [("a", "bear", number, b"x") for number in range(5)]
    assert len(run(PARTS.put, parts)) == 3
    run(PARTS.put, [("a", "bear", 4, b"other"), ("a", "bear", 5, b"y")])
    assert [part.number for part in run(PARTS.rows, "WHERE text <> ? ORDER BY number", b"other")] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("max_rows", "max_bytes"), [(2, 100), (9, 2), (2, 1), (100, 100)])
def test_a_hidden_object_is_deleted_part_by_part(
    run: Run, monkeypatch: pytest.MonkeyPatch, max_rows: int, max_bytes: int
) -> None:
    """A transaction deletes up to a number of parts, and up to a number of bytes or one part."""
    monkeypatch.setattr(objects, "MAX_REMOVED", max_rows)
    monkeypatch.setattr(objects, "MAX_COMMIT", MAX_COMMIT._replace(num_bytes=max_bytes))
    for tenant in "ab":
        run(TOYS.insert, replace(BEAR, tenant=tenant))
        run(PARTS.put, [(tenant, "bear", number, b"x") for number in range(7)])
    assert not run(TOYS.remove_hidden)
    run(TOYS.hide, "a", "bear")
    counts = []
    while run(TOYS.remove_hidden):
        counts.append(rows(run, "SELECT count(*) FROM roost_toy_parts WHERE tenant = 'a'")[0][0])
    step = 7 - counts[0]
    assert counts == [max(7 - step * call, 0) for call in range(1, len(counts) + 1)]
    assert step == min(max_rows, max_bytes, 7)
    assert rows(run, "SELECT tenant FROM roost_toys") == [("b",)]
    assert rows(run, "SELECT count(*) FROM roost_toy_parts") == [(7,)]
