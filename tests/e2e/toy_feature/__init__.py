"""A feature to try out how one is added."""
