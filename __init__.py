"""Roost: inference for RecurrentGemma and other Griffin models.

`LLM` and `AsyncLLM` run a model in this process; `roost serve` serves it over HTTP. Names are loaded on first use, so
`import roost` alone loads neither JAX nor the server.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .engine import CheckpointError, ConfigError, EngineDeadError, RoostError, StateFileError
    from .server.llm.async_llm import AsyncLLM
    from .server.llm.errors import RequestError
    from .server.llm.llm import LLM
    from .server.llm.local_model import EngineArgs
    from .server.llm.outputs import CompletionOutput, Logprob, RequestOutput, Score, State, ToolCall
    from .server.llm.requests import TextPrompt, TokensPrompt
    from .server.llm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    __version__: str

__all__ = [
    "LLM",
    "AsyncLLM",
    "CheckpointError",
    "CompletionOutput",
    "ConfigError",
    "EngineArgs",
    "EngineDeadError",
    "Logprob",
    "RequestError",
    "RequestOutput",
    "RequestOutputKind",
    "RoostError",
    "SamplingParams",
    "Score",
    "State",
    "StateFileError",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
    "ToolCall",
    "__version__",
]

_MODULES: Final = {
    "LLM": "server.llm.llm",
    "AsyncLLM": "server.llm.async_llm",
    "CheckpointError": "engine",
    "CompletionOutput": "server.llm.outputs",
    "ConfigError": "engine",
    "EngineArgs": "server.llm.local_model",
    "EngineDeadError": "engine",
    "Logprob": "server.llm.outputs",
    "RequestError": "server.llm.errors",
    "RequestOutput": "server.llm.outputs",
    "RequestOutputKind": "server.llm.sampling_params",
    "RoostError": "engine",
    "SamplingParams": "server.llm.sampling_params",
    "Score": "server.llm.outputs",
    "State": "server.llm.outputs",
    "StateFileError": "engine",
    "StructuredOutputsParams": "server.llm.sampling_params",
    "TextPrompt": "server.llm.requests",
    "TokensPrompt": "server.llm.requests",
    "ToolCall": "server.llm.outputs",
}
"""Module of each public name."""


def __getattr__(name: str) -> Any:
    """Loads a public name."""
    if name == "__version__":
        return importlib.metadata.version("roost")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
