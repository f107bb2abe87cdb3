"""Objects that tenants store, as rows whose columns are the fields of a record.

A record is declared once: the table that is created, the values of a statement and the result of a query follow from
it. Functions of tables run in a transaction, and find their rows by an index, independent of the number of rows.
`TenantObjects` are those of one kind, as requests use them: each tenant sees its own.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import batched, chain
from typing import Any, Final, NamedTuple, get_args, get_type_hints

from ..database.database import Database, Transaction, placeholders
from ..database.dialects import Cursor
from ..database.group_commit import MAX_COMMIT, ONE_ROW, GroupCommit, Work, WriteLoad
from ..errors import kinds
from ..errors.request_errors import ApiError
from ..tenants import tenant

MAX_FOUND: Final = 1000
"""Maximum number of objects to delete at a time for each reason."""

MAX_REMOVED: Final = 1000
"""Maximum number of parts that one transaction deletes."""

REPLY_S: Final = 5.0
"""Seconds after which a client gets an error while the database is unavailable."""

_MAX_SHOWN: Final = 100
"""Maximum number of characters of an id in an error."""

_MAX_NAMED: Final = 250
"""Maximum number of ids in a statement."""

_MAX_VALUES: Final = 4000
"""Maximum number of values in a statement that inserts; SQLite takes 32,766, and PostgreSQL 65,535."""

_NUMBERS: Final[Mapping[Any, str]] = {bool: "INTEGER", int: "BIGINT", float: "DOUBLE PRECISION"}
_TEXTS: Final[Mapping[Any, str]] = {str: "TEXT", bytes: "{bytes}"}
"""Types of columns."""

type Name = tuple[str, str]
"""Tenant and id of an object."""


@dataclass(frozen=True, slots=True)
class PageSpec:
    """Position and size of a page.

    Attributes:
      limit: Maximum number of entries.
      after: Id of the entry that the page follows; None begins with the first.
      newest_first: Whether the list begins with the newest entry.
    """

    limit: int
    after: str | None = None
    newest_first: bool = False


@dataclass(frozen=True, slots=True)
class Page[Item]:
    """Entries of a page.

    Attributes:
      has_more: Whether entries follow.
    """

    items: Sequence[Item]
    has_more: bool


class Bounds(NamedTuple):
    """Limits on the objects of each tenant.

    Attributes:
      max_rows: Maximum number of them.
      max_bytes: Maximum bytes of all together.
    """

    max_rows: int = 10_000
    max_bytes: int = 2**30


class Table[Record]:
    """Table of records.

    Args:
      name: Name of the table.
      record: Dataclass or named tuple whose fields are columns.
      key: Columns of the primary key.
      under: Columns before the record's, with their types: the object that it is part of, and its place there.
      extra: Columns after the record's that only statements use, with their types.
      indexes: Columns and condition of each index, by the end of its name.

    Attributes:
      columns: Columns of `under` and of the record, as a statement lists them.
    """

    def __init__(
        self,
        name: str,
        record: type[Record],
        key: Sequence[str] = ("tenant", "id"),
        under: Mapping[str, type] | None = None,
        extra: Mapping[str, Any] | None = None,
        indexes: Mapping[str, str] | None = None,
    ) -> None:
        types = get_type_hints(record)
        self.fields = list(types)
        self.name = name
        self.record = record
        self._types: dict[str, Any] = {**(under or {}), **{each: types[each] for each in self.fields}}
        self.columns = ", ".join(self._types)
        self._key, self._indexes = key, indexes or {}
        self._extra = extra or {}
        self._loads = [(place, load) for place, each in enumerate(self.fields) if (load := _load(types[each]))]

    @property
    def statements(self) -> Iterator[str]:
        """Statements that create the table."""
        columns = [f"{name} {_sql_type(kind)}" for name, kind in {**self._types, **self._extra}.items()]
        yield f"CREATE TABLE {self.name} ({', '.join(columns)}, PRIMARY KEY ({', '.join(self._key)}))"
        for suffix, on in self._indexes.items():
            yield f"CREATE INDEX {self.name}_{suffix} ON {self.name} {on}"

    def of(self, row: Sequence[Any]) -> Record:
        """Returns the record of a row with the record's columns."""
        values = list(row)
        for place, load in self._loads:
            values[place] = load(values[place])
        return self.record(*values)

    def values(self, record: Record) -> list[Any]:
        """Returns the values of a record's columns."""
        return [_stored(getattr(record, name)) for name in self.fields]

    def put(
        self, transaction: Transaction, rows: Iterable[Sequence[Any]], conflict: str = "DO NOTHING"
    ) -> list[Cursor]:
        """Inserts rows, unless their keys are stored already, and returns the results of the statements.

        Args:
          rows: Values of `columns` of each.
          conflict: What happens to a row whose key is stored already, and further clauses.
        """
        width = len(self._types)
        return [
            transaction.execute(
                f"INSERT INTO {self.name} ({self.columns}) VALUES {placeholders(len(some), width)} "
                f"ON CONFLICT ({', '.join(self._key)}) {conflict}",
                *chain.from_iterable(some),
            )
            for some in batched(rows, _MAX_VALUES // width)
        ]

    def insert(
        self, transaction: Transaction, record: Record, extra: dict[str, Any] | None = None, **computed: str
    ) -> int:
        """Inserts a record, unless its key is stored already, and returns the number of new rows.

        Args:
          extra: Values of columns that are not the record's.
          computed: Expressions of columns that the database computes, instead of the record's values.
        """
        given = dict(zip(self.fields, self.values(record), strict=True)) | (extra or {})
        given = {name: value for name, value in given.items() if name not in computed}
        values = ", ".join((*"?" * len(given), *computed.values()))
        return transaction.execute(
            f"INSERT INTO {self.name} ({', '.join((*given, *computed))}) VALUES ({values}) ON CONFLICT DO NOTHING",
            *given.values(),
        ).rowcount

    def rows(self, transaction: Transaction, rest: str, *values: Any) -> list[Record]:
        """Returns the records of rows.

        Args:
          rest: Conditions and order of the rows, such as `WHERE tenant = ?`.
        """
        found = transaction.rows(f"SELECT {', '.join(self.fields)} FROM {self.name} {rest}", *values)
        return [self.of(row) for row in found]

    def page(
        self,
        transaction: Transaction,
        spec: PageSpec,
        where: str,
        *values: Any,
        order: Sequence[str] = ("created", "id"),
    ) -> Page[Record] | None:
        """Returns the rows of a page; None if the list has no entry `spec.after`.

        Args:
          where: Condition of the list. The table has an index of its columns and the order.
          order: Columns that order the list, oldest first.
        """
        comparison, direction = ("<", "DESC") if spec.newest_first else (">", "ASC")
        names, bound = ", ".join(order), tuple[Any, ...]()
        if spec.after is not None:
            query = f"SELECT {names} FROM {self.name} WHERE {where} AND id = ?"
            bound = next(iter(transaction.rows(query, *values, spec.after)), ())
            if not bound:
                return None
        rest = f"AND ({names}) {comparison} {placeholders(1, len(order))}" if bound else ""
        sort = ", ".join(f"{name} {direction}" for name in order)
        found = self.rows(transaction, f"WHERE {where} {rest} ORDER BY {sort} LIMIT ?", *values, *bound, spec.limit + 1)
        return Page(found[: spec.limit], len(found) > spec.limit)

    def end_of_page(
        self, transaction: Transaction, own: Sequence[str], limit: int, max_bytes: int, after: Any = None
    ) -> Any:
        """Returns the last key column of the last row of a page; `after` if no row follows.

        Both databases know the length of a value without reading it. A separate column for the length would be stored
        after the value, and SQLite would read the value to find it.

        Args:
          own: Values of the other key columns.
          limit: Maximum number of rows.
          max_bytes: Number of bytes after which the page ends.
          after: Last key column of the row before the first one.
        """
        *names, last = self._key
        where = " AND ".join([*(f"{name} = ?" for name in names), *([] if after is None else [f"{last} > ?"])])
        size = " + ".join(f"length({name})" for name in self.fields if self._types[name] is bytes)
        query = f"SELECT {last}, {size} FROM {self.name} WHERE {where} ORDER BY {last} LIMIT ?"
        end, num_bytes = after, 0
        for key, length in transaction.execute(query, *own, *([] if after is None else [after]), limit):
            end, num_bytes = key, num_bytes + length
            if num_bytes >= max_bytes:
                break
        return end

    def remove(self, transaction: Transaction, own: Sequence[str]) -> bool:
        """Deletes the next rows of an object, and returns whether rows are left."""
        *names, last = self._key
        where = " AND ".join(f"{name} = ?" for name in names)
        end = self.end_of_page(transaction, own, MAX_REMOVED, MAX_COMMIT.num_bytes)
        if end is None:
            return False
        transaction.execute(f"DELETE FROM {self.name} WHERE {where} AND {last} <= ?", *own, end)
        return bool(transaction.rows(f"SELECT 1 FROM {self.name} WHERE {where} LIMIT 1", *own))


class ObjectTable[Record](Table[Record]):
    """Table of objects, which have a tenant, an id and `num_bytes`.

    An object with parts is hidden before it is deleted: its age begins at 0. Then its parts are deleted, a limited
    number in each transaction, and its row at the end.

    Args:
      name, record, key, under, extra, indexes: See `Table`.
      visible: Condition of the objects that clients find.
      bounded: Condition of the objects to which `Bounds` apply; None if to all visible ones.
      age: Column with the time at which their age begins. It needs its own index, and one that begins with the
        tenant, both of the bounded objects.
      parts: Tables of parts. The first columns of their keys are the tenant and the object's id.
    """

    def __init__(
        self,
        name: str,
        record: type[Record],
        *,
        visible: str = "1 = 1",
        bounded: str | None = None,
        age: str = "created",
        parts: Sequence[Table[Any]] = (),
        **columns: Any,
    ) -> None:
        super().__init__(name, record, **columns)
        self._parts = parts
        self.visible = visible
        self._bounded = visible if bounded is None else bounded
        self._age = age

    def find(self, transaction: Transaction, tenant: str, id: str) -> Record | None:
        """Returns an object; None if it does not exist."""
        found = self.rows(transaction, f"WHERE tenant = ? AND id = ? AND {self.visible}", tenant, id)
        return found[0] if found else None

    def page_of(self, transaction: Transaction, tenant: str, spec: PageSpec, **values: Any) -> Page[Record] | None:
        """Returns a page of a tenant's objects with these values of columns; see `page`."""
        where = "".join(f" AND {name} = ?" for name in values)
        return self.page(transaction, spec, f"tenant = ? AND {self.visible}{where}", tenant, *values.values())

    def hide(self, transaction: Transaction, tenant: str, id: str) -> None:
        """Hides an object, which `remove_hidden` deletes."""
        transaction.execute(f"UPDATE {self.name} SET {self._age} = 0 WHERE tenant = ? AND id = ?", tenant, id)

    def remove_hidden(self, transaction: Transaction) -> bool:
        """Deletes the next parts of a hidden object, or its row; returns whether there was a hidden one."""
        hidden = f"SELECT tenant, id FROM {self.name} WHERE {self._age} = 0 LIMIT 1 {{skip_locked}}"
        found = transaction.rows(hidden)
        for own in found:
            self.remove_object(transaction, *own)
        return bool(found)

    def remove_object(self, transaction: Transaction, tenant: str, id: str) -> bool:
        """Deletes the next parts of a hidden object, then its row; returns whether parts are left."""
        has_parts = any(part.remove(transaction, (tenant, id)) for part in self._parts)
        if not has_parts:
            transaction.execute(f"DELETE FROM {self.name} WHERE tenant = ? AND id = ?", tenant, id)
        return has_parts

    def expired(self, transaction: Transaction, bounds: Bounds, max_age_s: float) -> list[Name]:
        """Returns the oldest objects, whose deletion brings the others within the limits.

        There are up to `MAX_FOUND` of them per reason.

        Args:
          max_age_s: Age in seconds after which objects are deleted.
        """
        source = f"FROM {self.name} WHERE {self._bounded}"
        old = f"SELECT tenant, id {source} AND {self._age} < {{now}} - ? ORDER BY {self._age} LIMIT {MAX_FOUND}"
        found: list[Any] = transaction.rows(old, max_age_s)
        for owner in tenants_with(transaction, self.name, self._bounded):
            found += ((owner, id) for id in self.beyond(transaction, owner, bounds))
        return found[:MAX_FOUND]

    def beyond(self, transaction: Transaction, tenant: str, bounds: Bounds) -> list[str]:
        """Returns the ids of a tenant's oldest objects, whose deletion brings the others within its limits, up to
        `MAX_FOUND`.
        """
        source = f"FROM {self.name} WHERE {self._bounded} AND tenant = ?"
        ((count, num_bytes),) = transaction.rows(f"SELECT count(*), coalesce(sum(num_bytes), 0) {source}", tenant)
        if count <= bounds.max_rows and num_bytes <= bounds.max_bytes:
            return []
        found = []
        oldest = f"SELECT id, num_bytes {source} ORDER BY {self._age} LIMIT {MAX_FOUND}"
        for id, size in transaction.execute(oldest, tenant):
            if count <= bounds.max_rows and num_bytes <= bounds.max_bytes:
                break
            found.append(id)
            count, num_bytes = count - 1, num_bytes - size
        return found

    def unlocked(self, transaction: Transaction, tenant: str, ids: Sequence[str]) -> Iterator[str]:
        """Yields those objects of a tenant that no other transaction has locked, and locks them."""
        for some in batched(ids, _MAX_NAMED):
            named = f"tenant = ? AND id IN {placeholders(1, len(some))}"
            rows = transaction.rows(f"SELECT id FROM {self.name} WHERE {named} {{skip_locked}}", tenant, *some)
            yield from (id for (id,) in rows)


class TenantObjects[Record]:
    """Objects of a table, by the ids that clients send.

    Args:
      table: Table of the objects.
      pattern: Pattern of valid ids. Other strings from clients never reach the database: PostgreSQL refuses some
        characters.
      noun: Name of an object in errors.
      database: Database with the table.
      commits: Commits the writes.
    """

    def __init__(
        self, table: ObjectTable[Record], pattern: re.Pattern[str], noun: str, database: Database, commits: GroupCommit
    ) -> None:
        self._table = table
        self._pattern = pattern
        self._noun = noun
        self.database = database
        self._commits = commits

    async def find(self, id: str) -> Record | None:
        """Returns an object; None if it does not exist."""
        return await self.read(self._table.find, id)

    async def get(self, id: str) -> Record:
        """Returns an object.

        Raises:
          ApiError: 404, the object does not exist.
        """
        if (found := await self.find(id)) is None:
            raise missing(self._noun, id)
        return found

    async def page(self, spec: PageSpec, **values: Any) -> Page[Record] | None:
        """Returns a page of the objects with these values of columns; None if `spec.after` names none."""
        if spec.after is not None and not self._pattern.fullmatch(spec.after):
            return None
        owner = tenant.get()
        return await self.run(lambda each: self._table.page_of(each, owner, spec, **values))

    async def read[T](self, read: Callable[[Transaction, str, str], T], id: str) -> T | None:
        """Reads an object by its tenant and id; returns None if no object may have the id."""
        if not self._pattern.fullmatch(id):
            return None
        owner = tenant.get()
        return await self.run(lambda each: read(each, owner, id))

    async def write[T](
        self, write: Callable[[Transaction, str, str], T], id: str, load: WriteLoad = ONE_ROW
    ) -> T | None:
        """Changes an object by its tenant and id; returns None if no object may have the id."""
        if not self._pattern.fullmatch(id):
            return None
        owner = tenant.get()
        return await self.commit(lambda each: write(each, owner, id), load)

    async def run[T](self, read: Callable[[Transaction], T]) -> T:
        """Runs a transaction that reads, for a client."""
        return await self.database.run(read, timeout_s=REPLY_S)

    async def commit[T](self, write: Work[T], load: WriteLoad = ONE_ROW) -> T:
        """Runs a write for a client; see `GroupCommit.write`."""
        return await self._commits.write(write, REPLY_S, load)


def missing(noun: str, id: str, param: str | None = None) -> ApiError:
    """Returns a 404 for an object that does not exist.

    Args:
      noun: Name of the object in the error.
      param: Field that has the id.
    """
    return ApiError(kinds.NO_SUCH_OBJECT, f"there is no {noun} with the id {id[:_MAX_SHOWN]!r}", param=param)


def tenants_with(transaction: Transaction, table: str, condition: str) -> list[str]:
    """Returns the tenants that have rows of a condition, by a few index lookups for each tenant.

    Args:
      condition: Condition of a row. The tenants of such rows must be indexed.
    """
    rows = transaction.rows(
        f"""
        WITH RECURSIVE tenants (name) AS (
            SELECT min(tenant) FROM {table} WHERE {condition}
            UNION ALL
            SELECT (SELECT min(tenant) FROM {table} WHERE {condition} AND tenant > tenants.name) FROM tenants
            WHERE name IS NOT NULL
        )
        SELECT name FROM tenants WHERE name IS NOT NULL
        """
    )
    return [name for (name,) in rows]


def _sql_type(kind: Any) -> str:
    """Returns the type of a column for values of a Python type, which may be optional. Numbers are 0 by default."""
    if issubclass(type(None), kind):
        (kind,) = (each for each in get_args(kind) if each is not type(None))
        return {**_NUMBERS, **_TEXTS}[kind]
    return f"{_NUMBERS[kind]} NOT NULL DEFAULT 0" if kind in _NUMBERS else f"{_TEXTS.get(kind, 'TEXT')} NOT NULL"


def _stored(value: Any) -> Any:
    """Returns the value that a database stores."""
    return value.value if isinstance(value, Enum) else int(value) if isinstance(value, bool) else value


def _load(kind: Any) -> Callable[[Any], Any] | None:
    """Returns the function that converts a database's value to a Python type; None if it need not be converted."""
    is_converted = kind is bool or (isinstance(kind, type) and issubclass(kind, Enum))
    return kind if is_converted else None
