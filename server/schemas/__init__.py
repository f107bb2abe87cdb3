"""Schemas of what a request consists of, and their checks: HTTP and the Python API share them."""
