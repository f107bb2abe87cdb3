"""Models that are not on this machine: what is named is downloaded once, into the user's cache, and then opened."""

import re
from pathlib import Path
from typing import Final

from ...engine import CheckpointError, ModelSource, open_model
from ..settings import MODEL_CHOICES

_REPOSITORY: Final = re.compile(
    r"(?P<repo>[a-z0-9_][\w.-]*/[a-z0-9_][\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII | re.IGNORECASE
)
"""Of Hugging Face: an owner and a name, and perhaps a branch, a tag or a commit. Neither begins with a dot, as the
parts of a path may."""

_FILE: Final = re.compile(
    r".*\.(?:safetensors|gguf|json|toml|bin|pt|pth|ckpt|pkl|h5|npz|msgpack|model|zip|tar|tgz|gz)", re.IGNORECASE
)
"""A name with the suffix of a file, which no repository is called."""


def find_model(reference: str) -> ModelSource:
    """Opens a model, wherever it is.

    `owner/name` and `owner/name@revision` are Hugging Face's, `kaggle:owner/model/framework/variation` Kaggle's, and
    `gs://bucket/path` is a folder in Google's cloud storage; what is there on this machine goes first. All else is as
    in `open_model`.

    Raises:
      CheckpointError: it is not there, not granted, or not to be reached; the text says what to do.
    """
    if reference.startswith("kaggle:"):
        from . import kaggle

        handle = reference.removeprefix("kaggle:")
        return open_model(str(kaggle.fetch(handle)), kaggle.name_of(handle))
    if reference.startswith("gs://"):
        from . import gcs

        return open_model(str(gcs.fetch(reference)), reference.rstrip("/").rpartition("/")[2])
    if reference == "demo" or reference.startswith("random:") or Path(reference).exists():
        return open_model(reference)
    found = _REPOSITORY.fullmatch(reference)
    if found is None or _FILE.fullmatch(reference):
        raise CheckpointError(_why_not_there(reference))
    from . import huggingface

    return open_model(str(huggingface.fetch(found["repo"], found["revision"])), found["repo"].partition("/")[2])


def _why_not_there(reference: str) -> str:
    """What is wrong with a model that is neither on this machine nor can be a repository's name."""
    if _FILE.fullmatch(reference):
        return f"{reference}: no such file; MODEL is the folder that a model's files lie in, or owner/name"
    if reference.startswith("~"):
        return (
            f"{reference}: no such directory; ~ is only the home folder where the shell replaces it: leave out quotes"
        )
    return f"{reference}: no such directory; MODEL is {MODEL_CHOICES}"


def missing_extra(reference: str, extra: str) -> CheckpointError:
    """A library that not everybody needs is not installed."""
    return CheckpointError(f"{reference}: needs one more library; in a clone of Roost, pip install '.[{extra}]'")
