"""Schemas of the responses about saved states, for `/openapi.json`."""

from typing import Literal, TypedDict

from ...http.openapi import described


@described
class StateObject(TypedDict):
    """A saved state. Its first `read_tokens` tokens have been prefilled."""

    id: str
    """Id for `from_state` and for the paths below `/v1/states`."""

    object: Literal["state"]
    """Kind of object."""

    created: int
    """Time at which the state was saved, in seconds since 1970."""

    tokens: int
    """Number of tokens of the whole history."""

    read_tokens: int
    """Number of leading tokens that have been prefilled; the rest is prefilled when a request continues."""

    bytes: int
    """Bytes of memory that the state takes."""


@described
class StateList(TypedDict):
    """One page of the saved states."""

    object: Literal["list"]
    """Kind of object."""

    data: list[StateObject]
    """States of the page."""

    first_id: str
    """Id of the page's first state; empty if there is none."""

    last_id: str
    """Id of the page's last state, which `after` takes for the next page."""

    has_more: bool
    """Whether more states follow."""
