"""What tenants store, and work that replicas share: objects, leases, turns, and the loop that runs work."""
