"""Features: one folder each, which the rest of the server knows by one record."""
