"""Work that replicas share: who owns it and for how long, whose turn it is, and the loop that runs it."""
