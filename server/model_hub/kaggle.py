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
    except requests.RequestException as error:
        status = None if error.response is None else error.response.status_code
        raise CheckpointError(f"kaggle:{handle}: {_explain(handle, status, error)}") from error
    except (kagglehub.exceptions.DataCorruptionError, OSError) as error:
        raise CheckpointError(f"kaggle:{handle}: {_explain(handle, None, error)}") from error
    except ValueError as error:  # an invalid handle or kaggle.json
        raise CheckpointError(f"kaggle:{handle}: {_line(error)}") from error


def _explain(handle: str, status: int | None, error: Exception) -> str:
    if status in (401, 403):
        page = "/".join(handle.split("/")[:2])
        return (
            f"access is refused ({status}): open https://www.kaggle.com/models/{page}, log in, and accept the licence; "
            f"then make a token at {_SETTINGS} and set KAGGLE_API_TOKEN to it"
        )
    if status == 404:
        return "no such model; it is owner/model/framework/variation, as in kaggle:google/recurrentgemma/flax/2b-it"
    if status is not None:
        return f"Kaggle responded with status {status}; try again later: finished downloads are kept"
    return (
        f"cannot be downloaded ({_line(error)}); check the network and start again: finished downloads are kept. A "
        "downloaded model is found without a network if the handle ends with its version: …/2b-it/1"
    )


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
