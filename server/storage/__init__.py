"""Stored objects of tenants, and work that replicas share: leases, turns, and the loop that runs work."""
