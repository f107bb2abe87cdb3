"""Running a server process: sockets, lifecycle, connection limits and file reloads."""
