"""Errors and warnings of requests."""
