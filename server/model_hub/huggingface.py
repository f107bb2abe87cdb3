"""Download of models from the Hugging Face Hub."""

from pathlib import Path
from typing import Final

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ...engine import CheckpointError

_UNWANTED: Final = ["*.pt", "*.pth", "*.ckpt", "*.bin", "*.gguf", "*.h5", "*.onnx", "*.md", "original/*", "onnx/*"]
"""Files that are not downloaded: weights in other formats, and documentation."""


def fetch(repo: str, revision: str | None = None, api: HfApi | None = None, cache: Path | None = None) -> Path:
    """Returns a folder with a repository's files. Files in the cache of huggingface_hub are reused.

    Partial downloads are resumed. If the hub is unreachable, the cache is used.

    Args:
      repo: `owner/name`.
      revision: Branch, tag or commit; None means the main branch.
      api: Client of the hub; None configures it from the environment (HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE).
      cache: Folder of the cache; None takes it from the environment (HF_HOME, HF_HUB_CACHE).

    Raises:
      CheckpointError: The repository or revision does not exist, access is refused, or the hub is unreachable and the
        cache incomplete.
    """
    api = api or HfApi()
    failure = _why_unreachable(repo, revision, api)
    try:
        folder = api.snapshot_download(
            repo,
            revision=revision,
            ignore_patterns=_UNWANTED,
            cache_dir=cache,
            local_files_only=failure is not None,
        )
    except Exception as error:  # the libraries below raise errors of many unrelated types
        raise CheckpointError(f"{repo}: {_explain(failure or error, repo, revision, api)}") from error
    return Path(str(folder))


def _why_unreachable(repo: str, revision: str | None, api: HfApi) -> Exception | None:
    """Returns why the hub is unreachable, or None; `snapshot_download` would wait without a timeout."""
    try:
        api.model_info(repo, revision=revision, timeout=_TIMEOUT_S)
    except (HfHubHTTPError, HFValidationError):
        return None  # the hub responded; `snapshot_download` raises the same
    except Exception as error:  # see `fetch`
        return error
    return None


_TIMEOUT_S: Final = 10.0
"""Timeout of the reachability check in seconds."""


def _explain(error: Exception, repo: str, revision: str | None, api: HfApi) -> str:
    page, tokens = f"{api.endpoint}/{repo}", f"{api.endpoint}/settings/tokens"
    cause = error.__cause__
    if isinstance(error, LocalEntryNotFoundError) and isinstance(cause, Exception):
        error = cause
    if isinstance(error, GatedRepoError):
        steps = f"open {page}, log in, and click on the agreement, then make a token at {tokens} and set HF_TOKEN to it"
        return f"its licence has to be accepted first: {steps}"
    if isinstance(error, RevisionNotFoundError):
        return f"has no revision {revision!r}; {page}/refs lists them"
    if isinstance(error, RepositoryNotFoundError):
        found = f"is no directory here, and no repository at {api.endpoint} that may be read"
        return f"{found}; check the name, or set HF_TOKEN if it is private"
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    fix = "check the network, HF_TOKEN and HF_HUB_OFFLINE, and start again: finished downloads are kept"
    return f"cannot be downloaded ({reason}); {fix}"
