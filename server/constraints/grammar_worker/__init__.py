"""Worker program that compiles and follows grammars; it imports nothing of the server."""
