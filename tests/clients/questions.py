"""What the clients ask: a question that the demo model knows, a schema, and a tool."""

from typing import Literal

from pydantic import BaseModel, Field

QUESTION = "What is the capital of Spain?"
ANSWER = "Madrid"


class City(BaseModel):
    """A city and what is known of it."""

    name: str = Field(max_length=20, description="What people call it")
    country: Literal["Spain", "France", "Italy"]
    is_capital: bool
    nicknames: list[Literal["big", "old", "sunny"]] = Field(default_factory=list, max_length=2)


class Place(BaseModel):
    """A schema without bounds of length, which Anthropic's clients take out of schemas and check on their own."""

    name: Literal["Madrid", "Paris", "Rome"]
    country: Literal["Spain", "France", "Italy"]
    is_capital: bool


def weather(city: Literal["Madrid", "Paris", "Rome"]) -> str:
    """Returns the weather in a city.

    Args:
        city: The city to look at.
    """
    return f"It is sunny in {city}."
