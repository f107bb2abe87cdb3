"""Tenants and what they share fairly: memory budgets, worker threads, turns."""
