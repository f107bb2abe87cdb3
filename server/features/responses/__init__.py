"""Responses of `/v1/responses`: stored, streamed again, continued, and generated in the background."""
