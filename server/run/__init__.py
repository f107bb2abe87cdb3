"""The life of a serving process: sockets, signals, drain."""
