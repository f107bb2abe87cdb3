"""`roost bench serve`: measures a server from outside."""
