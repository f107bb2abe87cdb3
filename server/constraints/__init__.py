"""Output constraints: grammars, the processes that follow them, and tools."""
