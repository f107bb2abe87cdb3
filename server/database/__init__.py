"""Databases: SQLite and PostgreSQL, transactions, and the upgrades of features' tables.

Data that several replicas share is in the tables of a feature. A row that a replica works on belongs to that replica
until its lease ends, by the database's clock.
"""
