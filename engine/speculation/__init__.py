"""Speculative decoding: which tokens are drafted, and which drafts are accepted. Pure functions of device arrays."""
