"""Multi-query attention over the last W tokens, whose keys and values stand in a ring (spec section 2.6).

A ring is `[B, W, d]`: the key of position p lies in row p mod W. A query at p sees the keys of p - W ... p, both
included: W + 1 of them. So a step attends before it writes its own key over that of p - W.
"""

from .xla import decode_attention, prefill_attention

__all__ = ["decode_attention", "prefill_attention"]
