"""The real-gated linear recurrent unit, from its gates' pre-activations on (Griffin, arXiv 2402.19427, section 2.4)."""

from .sequential import rg_lru

__all__ = ["rg_lru"]
