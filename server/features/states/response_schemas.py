"""Schemas of the responses about saved states, for `/openapi.json`."""

from typing import Literal, NotRequired, TypedDict

from ...http.openapi import described


@described
class StateMessage(TypedDict):
    """A message of a chat, decoded from the tokens of its state."""

    role: Literal["system", "user", "assistant"]
    """Role of the author."""

    content: str
    """Text of the message."""


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

    messages: NotRequired[list[StateMessage]]
    """Messages of the chat, whose last one is a reply. `/v1/states/{state_id}` and `/v1/states/import` have them if the
    tokens are a chat in the model's chat format, of no more messages than a request may have: formatting the messages
    gives the same tokens, except that a model may have chosen others for the text of a reply."""


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
