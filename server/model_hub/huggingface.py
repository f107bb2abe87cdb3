"""Download of models from the Hugging Face Hub."""

from pathlib import Path
from typing import Final

from huggingface_hub import HfApi, constants, get_token
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
    page = f"{api.endpoint}/{repo}"
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    has_token = bool(api.token or get_token())
    if isinstance(error, GatedRepoError):
        token = "" if has_token else f", then make a token at {api.endpoint}/settings/tokens and set HF_TOKEN to it"
        return f"its licence has to be accepted first: open {page}, log in, and click on the agreement{token}"
    if isinstance(error, RevisionNotFoundError):
        return f"has no revision {revision!r}; {page}/refs lists them"
    if status == 401 and has_token:
        return f"the token in HF_TOKEN is not valid; make one at {api.endpoint}/settings/tokens and set HF_TOKEN to it"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"is no directory here, and no repository at {api.endpoint} that may be read; check the name, or set "
            "HF_TOKEN if it is private"
        )
    if status == 403:
        return f"access is refused (403): the token in HF_TOKEN needs permission to read gated repositories, see {page}"
    if status is not None:
        return f"the hub responded with status {status}; try again later: finished downloads are kept"
    if isinstance(error, HFValidationError):
        return f"is not a valid repository name ({_line(error)})"
    if constants.is_offline_mode():
        return f"is incomplete in the cache ({constants.HF_HUB_CACHE}); unset HF_HUB_OFFLINE to download it"
    return f"cannot be downloaded ({_line(error)}); check the network and start again: finished downloads are kept"


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
