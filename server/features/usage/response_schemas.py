"""Schemas of the responses about usage, for `/openapi.json`."""

from typing import TypedDict

from ...http.openapi import described


@described
class UsageRow(TypedDict):
    """Usage of a tenant on a day."""

    date: str
    """UTC day on which the requests ended, such as `2026-11-29`."""

    tenant: str
    """Name of the API keys; empty on a server without keys."""

    requests: int
    """Number of requests that had a slot and have ended."""

    prompt_tokens: int
    """Tokens of their prompts. Each prompt is counted once for all of its choices."""

    cached_tokens: int
    """Prompt tokens that were served from the prefix cache."""

    completion_tokens: int
    """Generated tokens of all choices."""


@described
class UsageList(TypedDict):
    """Response of `/v1/usage`."""

    object: str
    """Always `list`."""

    start: str
    """First day."""

    end: str
    """Last day."""

    data: list[UsageRow]
    """A row for each day and tenant with usage, oldest first."""
