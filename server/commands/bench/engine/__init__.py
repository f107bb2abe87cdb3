"""`roost bench engine` and `roost bench length`: measure an engine without a server."""
