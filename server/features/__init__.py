"""Features: a folder each, known to the rest by one record."""
