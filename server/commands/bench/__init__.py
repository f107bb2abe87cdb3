"""`roost bench`: benchmarks of an engine, of a server, and of long sequences."""
