"""`roost toy`."""


def toy() -> None:
    """Greet."""
    print("a toy greets")


command = toy
