"""Usage of each tenant and day, for the server's operator."""
