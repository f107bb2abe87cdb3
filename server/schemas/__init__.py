"""Schemas of the parts of a request, and their checks, shared by HTTP and the Python API."""
