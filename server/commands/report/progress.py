"""Progress of a report on stderr."""

import sys


def say(text: str) -> None:
    """Prints the current activity."""
    print(text, file=sys.stderr, flush=True)


def say_step(text: str) -> None:
    """Prints the current activity of a part."""
    say(f"  {text}")
