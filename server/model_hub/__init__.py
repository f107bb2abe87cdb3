"""Model hubs: models are downloaded once into the user's cache, and opened from there."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ...engine import Adapter, CheckpointError, ModelSource, open_adapter, open_model
from ..settings.settings import MODEL_CHOICES
from ..settings.sources import closest

_REPOSITORY: Final = re.compile(
    r"(?P<repo>[a-z0-9_][\w.-]*/[a-z0-9_][\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII | re.IGNORECASE
)
"""Hugging Face repository: an owner, a name and optionally a branch, tag or commit. Owner and name do not begin with a
dot, unlike parts of a path."""

_FILE: Final = re.compile(
    r".*\.(?:safetensors|gguf|json|toml|bin|pt|pth|ckpt|pkl|h5|npz|msgpack|model|zip|tar|tgz|gz)", re.IGNORECASE
)
"""File name with a known suffix, which is never interpreted as a repository."""

_BUILT_IN: Final = ("demo", "random:2b", "random:9b")
"""Models that come with Roost or are made by it."""


def find_model(reference: str, lora: Sequence[str] = ()) -> ModelSource:
    """Opens a model on this machine or from a hub, after downloading it.

    Args:
      reference: `owner/name` or `owner/name@revision` on Hugging Face, `kaggle:owner/model/framework/variation`, a path
        of a bucket, `gs://bucket/path` or `s3://bucket/path`, optionally with `#version`, or a reference for
        `open_model`. An existing path on this machine takes precedence over a repository of that name.
      lora: Adapters that are merged into the weights, in order: a folder or a repository, optionally with `=SCALE`.

    Raises:
      CheckpointError: The model does not exist, access is refused, or the hub is unreachable. The message names the
        fix.
    """
    return _find_model(reference).with_adapters([_find_adapter(each) for each in lora])


def _find_model(reference: str) -> ModelSource:
    if reference.startswith("kaggle:"):
        from . import kaggle

        handle = reference.removeprefix("kaggle:")
        return open_model(str(kaggle.fetch(handle)), kaggle.name_of(handle))
    if reference == "demo" or reference.startswith("random:") or Path(reference).exists():
        return open_model(reference)
    if (downloaded := _download(reference)) is None:
        raise CheckpointError(_why_not_there(reference))
    name, folder = downloaded
    return open_model(str(folder), name)


def _find_adapter(reference: str) -> Adapter:
    place, scale = _split_scale(reference)
    if Path(place).exists():
        return open_adapter(Path(place).resolve().name, Path(place), scale)
    if (downloaded := _download(place)) is None:
        raise CheckpointError(f"{place}: no such directory; --lora takes a folder by PEFT or owner/name, then =SCALE")
    return open_adapter(*downloaded, scale)


def _download(reference: str) -> tuple[str, Path] | None:
    """Returns the name and the folder of a bucket's path or a repository; None if the reference is neither."""
    if reference.startswith(("gs://", "s3://")):
        from . import buckets

        return buckets.BucketAddress.parse(reference).name, buckets.fetch(reference)
    found = _REPOSITORY.fullmatch(reference)
    if found is None or _FILE.fullmatch(reference):
        return None
    from . import huggingface

    return found["repo"].partition("/")[2], huggingface.fetch(found["repo"], found["revision"])


def _split_scale(reference: str) -> tuple[str, float]:
    """Splits `PLACE=SCALE`; the scale is 1 if there is none, or if the whole is a path."""
    place, separator, scale = reference.rpartition("=")
    if not separator or Path(reference).exists():
        return reference, 1.0
    try:
        return place, float(scale)
    except ValueError:
        raise CheckpointError(f"{reference}: what follows = must be a number, such as {place}=0.5") from None


def _why_not_there(reference: str) -> str:
    """Returns why a reference is neither a path nor a repository, for an error message."""
    if _FILE.fullmatch(reference):
        return f"{reference}: no such file; MODEL is the folder of a model's safetensors (not GGUF), or owner/name"
    guess = closest(reference, _BUILT_IN)
    hint = "" if guess is None else f"did you mean {guess}? "
    return f"{reference}: no such directory; {hint}MODEL is {MODEL_CHOICES}"
