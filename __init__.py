"""Roost: inference for RecurrentGemma and other Griffin models.

`LLM` and `AsyncLLM` run a model in this process; `roost serve` serves it over HTTP. Names are loaded on first use, so
`import roost` alone loads neither JAX nor the server.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .engine import RoostError
    from .server.python_api.async_llm import AsyncLLM
    from .server.python_api.errors import RequestError
    from .server.python_api.llm import LLM
    from .server.python_api.outputs import CompletionOutput, Logprob, RequestOutput, ToolCall
    from .server.python_api.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
    from .server.python_api.scoring import Score
    from .server.python_api.states import State

    __version__: str

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "Logprob",
    "RequestError",
    "RequestOutput",
    "RequestOutputKind",
    "RoostError",
    "SamplingParams",
    "Score",
    "State",
    "StructuredOutputsParams",
    "ToolCall",
    "__version__",
]

_MODULES: Final = {
    "LLM": "server.python_api.llm",
    "AsyncLLM": "server.python_api.async_llm",
    "CompletionOutput": "server.python_api.outputs",
    "Logprob": "server.python_api.outputs",
    "RequestError": "server.python_api.errors",
    "RequestOutput": "server.python_api.outputs",
    "RequestOutputKind": "server.python_api.sampling_params",
    "RoostError": "engine",
    "SamplingParams": "server.python_api.sampling_params",
    "Score": "server.python_api.scoring",
    "State": "server.python_api.states",
    "StructuredOutputsParams": "server.python_api.sampling_params",
    "ToolCall": "server.python_api.outputs",
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
