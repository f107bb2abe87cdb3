"""The program that compiles and follows grammars in processes of its own; it imports nothing of the server."""
