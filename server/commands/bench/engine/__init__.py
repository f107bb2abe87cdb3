"""`roost bench engine`: measures an engine without a server."""
