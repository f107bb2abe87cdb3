"""Errors and warnings that requests can end with."""
