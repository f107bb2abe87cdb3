"""Names and types of the arguments of `LLM`, `AsyncLLM` and their tokenizer, checked before anything else happens."""

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import Any, Final, NamedTuple

from ..errors.validation_errors import ForeignName
from ..settings.sources import closest
from .errors import RequestError, shown, unknown_name, wrong_value
from .outputs import RequestOutput, State
from .requests import CONVERSATION, ChatOptions, is_list, is_prompt
from .sampling_params import PARAMS, SamplingParams


class Form(NamedTuple):
    """What an argument takes.

    Attributes:
      takes: Returns whether a value has the right type; entries of lists are checked where they are used.
      text: Description for errors.
    """

    takes: Callable[[object], bool]
    text: str


def _is(*kinds: type | None) -> Callable[[object], bool]:
    """Returns a function that tells whether a value has one of several types, of which None is one."""
    types = tuple(type(None) if kind is None else kind for kind in kinds)
    return lambda value: isinstance(value, types)


_PROMPT: Final = Form(is_prompt, 'text, token ids or a list of prompts, such as ["Once upon a time", "The sea is"]')
_ONE_PROMPT: Final = Form(is_prompt, "text or token ids")
_STATE: Final = "a State, which save_state and load_state return"

_FORMS: Final[Mapping[str, Form]] = {
    "context": _ONE_PROMPT,
    "continuation": _ONE_PROMPT,
    "conversation": Form(is_list, CONVERSATION),
    "from_state": Form(_is(State, None), _STATE),
    "index": Form(_is(int), "a whole number"),
    "messages": Form(is_list, CONVERSATION),
    "pairs": Form(is_list, 'a list of a context and a continuation each, such as [("The sea is", " blue")]'),
    "path": Form(_is(str, os.PathLike), "the path of a file"),
    "prompt": Form(is_prompt, "text, token ids or messages"),
    "prompts": _PROMPT,
    "request": Form(_is(RequestOutput, str), "a RequestOutput, or the id of a request"),
    "request_id": Form(_is(str, None), "a string"),
    "sampling_params": Form(lambda value: value is None or _is(SamplingParams)(value) or is_list(value), PARAMS),
    "state": Form(_is(State), _STATE),
    "text": Form(_is(str), "a string"),
    "token_ids": Form(is_list, "a list of token ids, such as [651, 139]"),
}
"""Forms by the name of the argument. An argument without a form takes any value."""

_KEYWORDS: Final[Mapping[str | None, Collection[str]]] = {
    None: (),
    "vllm": (),
    "options": ChatOptions.__annotations__,
}
"""Keywords that a method takes by `**`, by the name after the stars. Another name takes any keyword."""

_VLLM: Final[Mapping[str, ForeignName]] = {
    "chat_template": ForeignName("put the template into the checkpoint's folder as chat_template.jinja"),
    "chat_template_content_format": ForeignName("leave it out", ("auto",)),
    "lora_request": ForeignName("merge adapters into the model with LLM(model, lora=[...])"),
    "prompt_token_ids": ForeignName("pass token ids as prompts, such as generate([[2, 651], [2, 139]])"),
    "priority": ForeignName("set it in SamplingParams"),
}
"""Arguments of vLLM's methods, and what to use instead."""


def checks_arguments[**P, R](method: Callable[P, R]) -> Callable[P, R]:
    """Makes a public method raise a `RequestError` when it is called with a wrong name or type."""
    signature = inspect.signature(method)

    @wraps(method)
    def checked_method(*args: P.args, **kwargs: P.kwargs) -> R:
        _check_names(method.__name__, signature, kwargs)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise RequestError(f"{method.__name__}(): {error}") from None
        for name, value in bound.arguments.items():
            form = _FORMS.get(name)
            if form is not None and not form.takes(value):
                raise wrong_value(name, form.text, value)
        return method(*args, **kwargs)

    return inspect.markcoroutinefunction(checked_method) if inspect.iscoroutinefunction(method) else checked_method


def _check_names(method: str, signature: inspect.Signature, keywords: Mapping[str, Any]) -> None:
    """Checks the names of keywords; those of vLLM may have values without effect.

    Raises:
      RequestError: The method does not take a keyword.
    """
    names = [name for name, parameter in signature.parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
    rest = next((name for name in signature.parameters if name not in names), None)
    if rest not in _KEYWORDS:
        return
    names = [*names[1:], *_KEYWORDS[rest]]
    for name, value in keywords.items():
        foreign = _VLLM.get(name)
        if name in names or (rest is not None and foreign is not None and not foreign.has_effect(value)):
            continue
        raise _unknown_keyword(method, name, value, names)


def _unknown_keyword(method: str, name: str, value: Any, names: Collection[str]) -> RequestError:
    """Returns the error for a keyword, which says where it belongs."""
    if name in _VLLM:
        return RequestError(f"{name} is vLLM's name: {_VLLM[name].instead}", name)
    parameter = closest(name, SamplingParams.__annotations__)
    if parameter is not None and "sampling_params" in names and closest(name, names) is None:
        fix = f"pass SamplingParams({parameter}={shown(value)})"
        return RequestError(f"{method}() has no argument {name!r}: {fix}", name)
    if name in ChatOptions.__annotations__:
        return RequestError(f"{method}() has no argument {name!r}: it is for messages, which chat takes", name)
    return unknown_name(f"{method}()", name, names)
