"""Download of official checkpoints from Kaggle Models."""

from pathlib import Path
from typing import Final

from ...engine import CheckpointError

_SETTINGS: Final = "https://www.kaggle.com/settings"


def name_of(handle: str) -> str:
    """Returns the name of a model: `recurrentgemma-2b-it` for `google/recurrentgemma/flax/2b-it`."""
    parts = handle.split("/")
    return "-".join((parts[1], parts[3])) if len(parts) > 3 else handle


def fetch(handle: str) -> Path:
    """Returns a folder with a model's files, in kagglehub's cache; partial downloads are resumed.

    Args:
      handle: `owner/model/framework/variation`, optionally with `/version`; the default is the newest version.

    Raises:
      CheckpointError: The model does not exist, access is refused, or Kaggle is unreachable.
    """
    try:
        import kagglehub
        import requests
    except ImportError:
        text = f"kaggle:{handle}: needs one more library; in a clone of Roost, pip install '.[kaggle]'"
        raise CheckpointError(text) from None
    try:
        return Path(kagglehub.model_download(handle))
    # ValueError: an invalid handle or kaggle.json
    except (requests.RequestException, kagglehub.exceptions.DataCorruptionError, OSError, ValueError) as error:
        raise CheckpointError(f"kaggle:{handle}: {_explain(handle, error)}") from error


def _explain(handle: str, error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None and response.status_code in (401, 403):
        page = f"https://www.kaggle.com/models/{'/'.join(handle.split('/')[:2])}"
        steps = f"open {page}, log in, and accept the licence; then make a token at {_SETTINGS}"
        return f"access is refused ({response.status_code}): {steps} and set KAGGLE_API_TOKEN to it"
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return (
        f"cannot be downloaded ({reason}); check that it is owner/model/framework/variation, and the network, and "
        "start again: finished downloads are kept. A downloaded model is found without a network if the handle ends "
        "with its version: …/2b-it/1"
    )
