"""Tenants and the resources they share fairly: worker threads, locks, open requests."""
