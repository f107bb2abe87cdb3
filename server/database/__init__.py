"""Databases: SQLite and PostgreSQL, transactions, and the upgrades of their tables. It has no table of its own.

What several replicas share stands in a feature's tables. A row that one of them works on belongs to it for as long as
its lease lasts, which ends by the database's clock.
"""
