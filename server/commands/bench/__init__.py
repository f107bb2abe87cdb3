"""`roost bench`: how fast an engine, a server and a long text are."""
