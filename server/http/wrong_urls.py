"""Suggests paths for wrong URLs: without `/v1`, with `/v1` twice, in the singular, or of other servers."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

_OTHER_SERVERS: Final[Mapping[str, str]] = {
    "/api/chat": "/v1/chat/completions",
    "/api/generate": "/v1/completions",
    "/api/show": "/server_info",
    "/api/tags": "/v1/models",
    "/api/version": "/version",
    "/chat": "/v1/chat/completions",
    "/completion": "/v1/completions",
    "/get_model_info": "/server_info",
    "/get_server_info": "/server_info",
    "/healthz": "/health",
    "/info": "/server_info",
    "/invocations": "/v1/chat/completions",
    "/livez": "/health",
    "/ping": "/health",
    "/props": "/server_info",
    "/ready": "/health/ready",
    "/readyz": "/health/ready",
    "/slots": "/load",
    "/swagger": "/docs",
    "/redoc": "/docs",
    "/v1/chat": "/v1/chat/completions",
    "/v1/health": "/health",
}
"""Paths of Ollama, llama.cpp, SGLang, TGI, and of probes in Kubernetes."""

_PLURALS: Final[Mapping[str, str]] = {
    "batch": "batches",
    "completion": "completions",
    "file": "files",
    "message": "messages",
    "model": "models",
    "response": "responses",
    "state": "states",
}

_PREFIXES: Final = re.compile(r"^(?:/(?:api|openai|anthropic|v1|v1beta|v2))+(?=/)")
_SINGULAR: Final = re.compile(rf"/({'|'.join(_PLURALS)})(?=/|$)")

_MAX_PATH: Final = 256
"""Maximum characters of a path for which a right one is searched."""


def right_path(path: str, exists: Callable[[str], bool]) -> str | None:
    """Returns the path that was probably meant, if there is one.

    Args:
      path: Path without a route.
      exists: Returns whether a path has a route.
    """
    if len(path) > _MAX_PATH:
        return None
    return next((each for each in _candidates(path) if each != path and exists(each)), None)


def _candidates(path: str) -> Iterator[str]:
    clean = re.sub("/{2,}", "/", path).rstrip("/").lower()
    tail = _PREFIXES.sub("", clean)
    if (known := _OTHER_SERVERS.get(clean)) is not None:
        yield known
    for each in (clean, f"/v1{tail}", tail):
        yield each
        yield _SINGULAR.sub(lambda found: f"/{_PLURALS[found[1]]}", each)
