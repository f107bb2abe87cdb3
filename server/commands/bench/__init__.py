"""`roost bench`: benchmarks of an engine and of a server."""
