"""Model hubs: models are downloaded once into the user's cache, and then opened from there."""

import re
from pathlib import Path
from typing import Final

from ...engine import CheckpointError, ModelSource, open_model
from ..settings import MODEL_CHOICES

_REPOSITORY: Final = re.compile(
    r"(?P<repo>[a-z0-9_][\w.-]*/[a-z0-9_][\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII | re.IGNORECASE
)
"""Hugging Face repository: an owner, a name and optionally a branch, tag or commit. Owner and name do not begin with a
dot, unlike parts of a path."""

_FILE: Final = re.compile(
    r".*\.(?:safetensors|gguf|json|toml|bin|pt|pth|ckpt|pkl|h5|npz|msgpack|model|zip|tar|tgz|gz)", re.IGNORECASE
)
"""Name with the suffix of a file, which is never taken for a repository."""


def find_model(reference: str) -> ModelSource:
    """Opens a model on this machine or from a hub, after downloading it.

    Args:
      reference: `owner/name` or `owner/name@revision` on Hugging Face, `kaggle:owner/model/framework/variation`, a
        folder `gs://bucket/path` in Google Cloud Storage, or a reference for `open_model`. An existing path on this
        machine takes precedence over a repository of that name.

    Raises:
      CheckpointError: The model does not exist, access is refused, or the hub is unreachable; the message says what to
        do.
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
    """Returns why a reference is neither a path nor a repository, for an error message."""
    if _FILE.fullmatch(reference):
        return f"{reference}: no such file; MODEL is the folder of a model's files, or owner/name"
    if reference.startswith("~"):
        return f"{reference}: no such directory; the shell replaces ~ by the home folder only without quotes"
    return f"{reference}: no such directory; MODEL is {MODEL_CHOICES}"
