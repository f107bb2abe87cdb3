"""Tenants and the resources they share fairly: memory budgets, worker threads, locks, open requests."""
