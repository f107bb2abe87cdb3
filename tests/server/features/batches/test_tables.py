"""Upgrades of the tables of files and batches."""

from databases import opened, table_names
from roost.server.database import schema
from roost.server.database.address import StoreAddress
from roost.server.database.dialects import dialect_of
from roost.server.database.schema import Tables
from roost.server.features.batches import file_table
from roost.server.features.batches.tables import TABLES


def test_an_upgrade_counts_the_output_of_batches(address: str) -> None:
    """Older code has not counted the bytes of lines that have ended. Then, all tables had one version: 3."""
    database, dialect = opened(address), dialect_of(StoreAddress.parse(address))
    for name in database.run_now(lambda each: table_names(each, address)):
        database.run_now(lambda each, name=name: each.execute(f"DROP TABLE {name}"), writes=True)
    older = Tables("batches", TABLES.upgrades[:1])
    database.run_now(lambda each: schema.upgrade(each, dialect, older), writes=True)
    database.run_now(lambda each: each.execute("DELETE FROM roost_schemas"), writes=True)
    database.run_now(lambda each: each.execute("INSERT INTO roost_schema VALUES (3, 1)"), writes=True)
    batch = ("", "b", "in_progress", "m", "/v1/x", "in", "out", "err", "24h", b"{}", 0, 0, 3, 1, 1, 3, 0)
    database.run_now(
        lambda each: each.execute(
            """
            INSERT INTO roost_batches (tenant, id, status, model, url, input_file, output_file, error_file, time_window,
                metadata, created, expires, num_lines, num_completed, num_failed, next_line, claimed)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
            """,
            *batch,
        ),
        writes=True,
    )
    database.run_now(lambda each: file_table.put_lines(each, "", [("out", 1, b"12345\n")]), writes=True)
    database.run_now(lambda each: file_table.put_lines(each, "", [("err", 2, b"12\n")]), writes=True)
    database.run_now(lambda each: schema.upgrade(each, dialect, TABLES), writes=True)
    sizes = database.run_now(lambda each: each.rows("SELECT output_bytes, error_bytes FROM roost_batches"))
    assert sizes == [(6, 3)]
    for name in database.run_now(lambda each: table_names(each, address)):
        database.run_now(lambda each, name=name: each.execute(f"DROP TABLE {name}"), writes=True)
    database.close()
