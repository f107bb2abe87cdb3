"""The depthwise causal convolution of the recurrent block, with carried inputs (spec section 2.5)."""

from .xla import causal_conv1d, next_state, states_between

__all__ = ["causal_conv1d", "next_state", "states_between"]
