"""Server lifecycle: loading, ready, draining, stopped."""
