"""Upgrades of the tables of files and batches."""

from batch_rows import claimed, end, runner
from databases import opened, table_names
from roost.server.database import schema
from roost.server.database.address import StoreAddress
from roost.server.database.dialects import dialect_of
from roost.server.database.schema import Tables
from roost.server.features.batches import batch_table, file_table
from roost.server.features.batches.batch_records import NO_USAGE
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


def test_an_upgrade_leaves_claims_and_older_code_as_they_are(address: str) -> None:
    """Older code begins batches and claims lines while a fleet is upgraded; its tenants have had no turn."""
    database, dialect = opened(address), dialect_of(StoreAddress.parse(address))
    run = runner(database)
    for name in run(table_names, address=address):
        database.run_now(lambda each, name=name: each.execute(f"DROP TABLE {name}"), writes=True)
    run(schema.upgrade, dialect=dialect, tables=Tables("batches", TABLES.upgrades[:2]))
    file = """
        INSERT INTO roost_files (tenant, id, created, purpose, name, num_bytes, num_lines, url, is_whole)
        VALUES ('a', 'in', 0, 'batch', 'x', 6, 3, '/v1/x', 1)
    """
    database.run_now(lambda each: each.execute(file), writes=True)
    run(file_table.add_lines, tenant="a", file_id="in", first=1, lines=[b"x\n"] * 3)
    batch = """
        INSERT INTO roost_batches (tenant, id, status, model, url, input_file, output_file, error_file, time_window,
            metadata, created, expires, num_lines, num_completed, num_failed, next_line, claimed)
        VALUES ('a', 'b', 'in_progress', 'model', '/v1/x', 'in', 'out', 'err', '24h', ?, 0, 1e15, 3, 0, 0, 1, 0)
    """
    database.run_now(lambda each: each.execute(batch, b"{}"), writes=True)
    insert = """
        INSERT INTO roost_batch_claims (tenant, batch, number, model, owner, fence, num_claims, lease_until)
        VALUES ('a', 'b', ?, 'model', 'old', 1, 1, 0)
    """
    database.run_now(lambda each: each.execute(insert, 1), writes=True)
    run(schema.upgrade, dialect=dialect, tables=TABLES)
    database.run_now(lambda each: each.execute(insert, 2), writes=True)
    database.run_now(lambda each: each.execute("UPDATE roost_batches SET next_line = 3"), writes=True)
    claims = claimed(run, "new", 3)
    assert [(claim.lease.number, claim.num_deaths) for claim in claims] == [(1, 1), (2, 1), (3, 0)]
    for claim in claims:
        end(run, claim)
    found = run(batch_table.find, tenant="a", batch_id="b")
    assert (found.status, found.usage, found.output_expires_s) == ("completed", NO_USAGE, None)
    assert run(file_table.find, tenant="a", file_id="in").expires is None
    database.close()
