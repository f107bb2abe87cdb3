"""JSON schemas of clients, rewritten for llguidance."""

from .preparation import PreparedSchema, prepare

__all__ = ["PreparedSchema", "prepare"]
