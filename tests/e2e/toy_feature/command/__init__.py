"""`roost toy`."""
