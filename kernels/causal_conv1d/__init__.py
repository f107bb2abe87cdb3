"""Depthwise causal convolution of the recurrent block (arXiv 2402.19427, section 2.3), with carried inputs."""

from .xla import causal_conv1d, next_state, states_at_boundaries

__all__ = ["causal_conv1d", "next_state", "states_at_boundaries"]
