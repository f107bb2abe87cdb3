"""One engine over several hosts."""
