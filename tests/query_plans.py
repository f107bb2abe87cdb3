"""Plans of a database's statements: which tables and indexes they read from end to end."""

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roost.server.database.database import Database, Transaction

_SCAN = re.compile(r"SCAN (roost\w+)(?: .*INDEX (\w+))?")


def scans_of(database: "Database", work: "Callable[[Transaction], Any]") -> set[str]:
    """Returns the tables, or their indexes, that the statements of a transaction read from end to end.

    PostgreSQL is kept from sequential scans where an index has the rows, since it prefers them for small tables.
    """

    def explain(transaction: "Transaction") -> set[str]:
        statements: list[tuple[str, tuple[Any, ...]]] = []
        execute, is_sqlite = transaction.execute, not transaction.dialect.lock_schema
        if not is_sqlite:
            execute("SET LOCAL statement_timeout = 0")  # a busy machine may take longer
            execute("SET LOCAL enable_seqscan = off")

        def noted(sql: str, *values: Any) -> Any:
            statements.append((sql, values))
            return execute(sql, *values)

        transaction.execute = noted
        work(transaction)
        transaction.execute = execute
        read = _sqlite_scans if is_sqlite else _postgresql_scans
        return {name for sql, values in statements for name in read(execute, sql, values)}

    return database.run_now(explain, writes=True)


def _sqlite_scans(execute: Callable[..., Any], sql: str, values: tuple[Any, ...]) -> Iterator[str]:
    for row in execute(f"EXPLAIN QUERY PLAN {sql}", *values).fetchall():
        if found := _SCAN.match(row[3]):
            yield found[2] or found[1]


def _postgresql_scans(execute: Callable[..., Any], sql: str, values: tuple[Any, ...]) -> Iterator[str]:
    ((plans,),) = execute(f"EXPLAIN (FORMAT JSON) {sql}", *values).fetchall()
    nodes = [(plan["Plan"], "") for plan in plans]
    while nodes:
        node, parent = nodes.pop()
        nodes += [(each, node["Node Type"]) for each in node.get("Plans", [])]
        is_first = parent == "Limit" and "Filter" not in node
        if node["Node Type"] == "Seq Scan":
            yield node["Relation Name"]
        elif "Index Name" in node and "Index Cond" not in node and not is_first:
            yield node["Index Name"]
