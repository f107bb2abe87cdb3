"""Paths of other servers and APIs, with hints what to use instead."""

from collections.abc import Iterable, Mapping
from typing import Final

_HINTS: Final[Mapping[str, str]] = {
    "use {root}/v1/chat/completions": "/api/chat /chat /invocations /v1/chat",
    "use {root}/v1/completions": "/api/generate /v1/edits",
    "use {root}/v1/completions with stream: true": "/generate_stream",
    "send texts to {root}/v1/completions, and chats to {root}/v1/chat/completions": "/",
    "use {root}/v1/models": "/api/ps /api/tags",
    "use {root}/server_info": "/api/show /get_model_info /get_server_info /info /model_info /props",
    "use {root}/version": "/api/version",
    "use {root}/health": "/livez /ping",
    "use {root}/health/ready": "/ready /readyz",
    "use {root}/load": "/slots /get_load",
    "use {root}/docs": "/swagger /redoc",
    "the model was not trained to fill in; {root}/v1/completions continues a text": "/infill",
    "the model generates text and has no scores; {root}/v1/completions with echo and logprobs scores texts": (
        "/classify /pooling /rerank /reranking /score /v1/classify /v1/rerank /v1/reranking /v1/score /v2/rerank"
    ),
    "the model generates text and has no embeddings": (
        "/api/embed /api/embeddings /embed /embedding /embeddings /encode /v1/embeddings /v2/embed"
    ),
    "the model reads and writes text only": (
        "/v1/audio/speech /v1/audio/transcriptions /v1/audio/translations /v1/images/edits /v1/images/generations "
        "/v1/images/variations /v1/moderations /v1/videos"
    ),
    "adapters are merged when the server starts, by --lora": (
        "/load_lora_adapter /lora-adapters /v1/load_lora_adapter /v1/unload_lora_adapter"
    ),
    "the model is chosen when the server starts, by MODEL": "/api/copy /api/create /api/delete /api/pull /api/push",
    "states are evicted as memory needs it; a new cache_salt shares none": "/flush_cache /reset_prefix_cache",
}
"""Hints, each with the paths that it is for, which spaces separate. `{root}` is the prefix of a proxy.

The paths are those of OpenAI, Anthropic, Ollama, llama.cpp, SGLang, TGI and vLLM, and of probes in Kubernetes, unless
they are like the right ones.
"""


def foreign_paths(hints_of_features: Iterable[Mapping[str, str]]) -> Mapping[str, str]:
    """Returns the hint of each path: those of the core, and of features, which have the same form."""
    tables = (_HINTS, *hints_of_features)
    return {path: hint for hints in tables for hint, paths in hints.items() for path in paths.split()}
