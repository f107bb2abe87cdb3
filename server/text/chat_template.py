"""Chat formats of checkpoints: layout by a Jinja template, or Gemma's turns without one."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Never

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ...engine.types.errors import CheckpointError
from .chat_format import (
    ChatFormat,
    ChatFormatError,
    Ending,
    Layout,
    Message,
    Part,
    fold,
    fold_after_system,
    gemma_turns,
    lay_out,
)
from .tokenizer import END_OF_TURN, START_OF_TURN, Tokenizer, read_object

_ROLES: Final = {"s": "system", "u": "user", "a": "assistant"}

type _Order = Callable[[Sequence[Message]], list[Message]]
"""Folds messages into an order of roles."""

_ORDERS: Final[Sequence[tuple[_Order, Sequence[str]]]] = (
    (list, ("ssuuaasaus", "uuaasaussu", "aasaussuuau")),  # each role comes first, and after each role
    (fold_after_system, ("suau",)),
)
"""Orders of roles that fold less than `fold`, with the roles of the conversations that test whether a template accepts
that order."""


class ChatTemplate:
    """Layout by a checkpoint's Jinja template.

    The template receives placeholders instead of texts, except empty ones, so that its markup can be distinguished from
    texts. A text that it writes twice is in the prompt twice; one that it drops or changes is an error, which would
    otherwise go unnoticed.

    Probes determine once, when the template is loaded, which order of roles it accepts: any order, alternating turns
    after a system message, or alternating turns only. Every conversation is then rendered in that form, so that the
    prefix of a growing prompt does not change.

    Args:
      source: Source of the template.
      variables: Global variables of the template.

    Attributes:
      takes_tools: Whether the template uses the variable `tools`.

    Raises:
      jinja2.TemplateSyntaxError: The source is not a template.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals |= {**variables, "raise_exception": _raise_exception}
        self.takes_tools = "tools" in jinja2.meta.find_undeclared_variables(environment.parse(source))
        self._template = environment.from_string(source)
        accepted = (order for order, probes in _ORDERS if all(self._takes(order, roles) for roles in probes))
        self._fold = next(accepted, fold)

    def __call__(self, messages: Sequence[Message], ending: Ending) -> list[Part]:
        return lay_out(self._fold(messages), ending, partial(self._write, ending.variables))

    def _takes(self, order: _Order, roles: str) -> bool:
        """Returns whether the template accepts messages with roles of these initials, and keeps their order."""
        probe = order([Message(_ROLES[role], str(position)) for position, role in enumerate(roles)])
        try:
            parts = self._write({}, probe, True)
        except ChatFormatError:
            return False
        texts = dict.fromkeys(part.text for part in parts if not part.markup)
        return list(texts) == [message.content for message in probe]

    def _write(self, variables: Mapping[str, Any], messages: Sequence[Message], add_header: bool) -> list[Part]:
        parts = self._parts(messages, variables, add_header=add_header)
        ends_with_reply = add_header and messages and messages[-1].role == "assistant"
        if ends_with_reply and parts == self._parts(messages, variables, add_header=False):
            raise ChatFormatError(
                "the checkpoint's chat template starts no turn after an assistant's message: "
                "add a user's message, or set continue_final_message"
            )
        return parts

    def _parts(self, messages: Sequence[Message], variables: Mapping[str, Any], *, add_header: bool) -> list[Part]:
        texts = {str(index): message.content for index, message in enumerate(messages) if message.content}
        quoted = [
            {"role": message.role, "content": _placeholder(index) if message.content else ""}
            for index, message in enumerate(messages)
        ]
        # `split` alternates between markup and the indices inside of placeholders.
        rendered = _PLACEHOLDER.split(self._render(quoted, add_header, variables))
        if set(rendered[1::2]) != texts.keys():
            raise ChatFormatError("the checkpoint's chat template leaves out or rewrites a message's text")
        return [
            Part(texts[text], markup=False) if position % 2 else Part(text) for position, text in enumerate(rendered)
        ]

    def _render(self, messages: Sequence[Mapping[str, object]], add_header: bool, variables: Mapping[str, Any]) -> str:
        try:
            return self._template.render({**variables, "messages": messages, "add_generation_prompt": add_header})
        except Exception as error:  # a template is a program: its expressions may raise anything
            reason = " ".join(str(error).split())
            raise ChatFormatError(f"the checkpoint's chat template refuses these messages: {reason}") from error


# Private-use characters and digits, which a template does not trim, split or change the case of.
_PLACEHOLDER: Final = re.compile("\ue0f0([0-9]+)\ue0f1")


def _placeholder(index: int) -> str:
    return f"\ue0f0{index}\ue0f1"


def _raise_exception(message: str) -> Never:
    raise jinja2.TemplateError(message)


def load_chat_format(directory: Path | None, tokenizer: Tokenizer) -> ChatFormat:
    """Returns the chat format of a checkpoint: its template, or Gemma's turns if it has none.

    If the tokenizer has no text, or no marks for Gemma's turns, the format refuses all messages.

    Args:
      directory: Folder of the checkpoint; None for random weights.
      tokenizer: Tokenizer of the model.

    Raises:
      CheckpointError: The checkpoint's template is broken.
    """
    if not tokenizer.has_text:
        return ChatFormat(tokenizer, _refusal("this checkpoint has no tokenizer: send token ids to /v1/completions"))
    if directory is not None and (template := _load_template(directory, tokenizer)) is not None:
        return ChatFormat(tokenizer, template, takes_tools=template.takes_tools)
    for mark in (START_OF_TURN, END_OF_TURN):
        if not _has_control_token(tokenizer, mark):
            return ChatFormat(
                tokenizer,
                _refusal(f"this checkpoint's tokenizer has no {mark}, and no chat template: use /v1/completions"),
            )
    return ChatFormat(tokenizer, gemma_turns)


def _load_template(directory: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """Returns the template of a checkpoint, or None if it has none.

    Args:
      directory: Folder of the checkpoint.
      tokenizer: Tokenizer, whose BOS and EOS names are variables of the template.

    Raises:
      CheckpointError: The template is broken.
    """
    path = directory / "chat_template.jinja"
    if path.is_file():
        source: str | None = _read_text(path)
    else:
        path = directory / "tokenizer_config.json"
        source = _default_template(path, read_object(path).get("chat_template"))
    if source is None:
        return None
    bos_name = "" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id)
    eos_name = tokenizer.token_text(tokenizer.end_token_ids[0]) if tokenizer.end_token_ids else ""
    try:
        return ChatTemplate(source, {"bos_token": bos_name, "eos_token": eos_name})
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(f"{path}: the chat template is broken at line {error.lineno}: {error.message}") from error
    except RecursionError:
        raise CheckpointError(f"{path}: the chat template is nested too deeply") from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as text ({error})") from error


def _default_template(path: Path, value: object) -> str | None:
    """Returns the template in tokenizer_config.json, which may have none, one, or a list of named ones."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        for entry in value:
            match entry:
                case {"name": "default", "template": str(source)}:
                    return source
    raise CheckpointError(f'{path}: chat_template must be a string, or a list with an entry named "default"')


def _refusal(reason: str) -> Layout:
    def refuse(messages: Sequence[Message], ending: Ending) -> list[Part]:
        raise ChatFormatError(reason)

    return refuse


def _has_control_token(tokenizer: Tokenizer, name: str) -> bool:
    ids = tokenizer.encode(name)
    return len(ids) == 1 and tokenizer.is_control(ids[0])
