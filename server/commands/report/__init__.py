"""`roost report`: describes a device, checks Roost's results on it, and measures its speed."""
