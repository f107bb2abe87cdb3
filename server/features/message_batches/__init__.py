"""Anthropic's message batches: `/v1/messages/batches`."""
