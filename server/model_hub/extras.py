"""Libraries of hubs that are installed on demand."""

from ...engine import CheckpointError


def missing_extra(reference: str, extra: str) -> CheckpointError:
    """Returns the error for a missing optional library.

    Args:
      reference: Reference of the model.
      extra: Optional dependency group of Roost that has the library.
    """
    return CheckpointError(f"{reference}: needs one more library; in a clone of Roost, pip install '.[{extra}]'")
