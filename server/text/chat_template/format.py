"""Renders and encodes chat messages."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ..tokenizer import END_OF_TURN, START_OF_TURN, Tokenizer
from .layout import NEW_TURN, Ending, Layout, Part, gemma_turns
from .template import bos_name, load_template
from .turns import ChatFormatError, Message, normalized


class ChatFormat:
    """Renders and encodes chat messages.

    Roles are system, developer (the same), user and assistant (or model), in any order; the layout folds messages that
    its format has no role for. Whitespace around each message is stripped, except at an open end. Names of control
    tokens inside of a message are plain text.

    Args:
      tokenizer: Tokenizer of the model.
      layout: Layout of prompts.
      takes_tools: Whether the layout describes tools itself, given the variable `tools`.
    """

    def __init__(self, tokenizer: Tokenizer, layout: Layout, *, takes_tools: bool = False) -> None:
        self.takes_tools = takes_tools
        self._tokenizer = tokenizer
        self._layout = layout

    def encode(self, messages: Sequence[Message], ending: Ending = NEW_TURN) -> list[int]:
        """Returns the prompt's token ids, with BOS only at the start.

        Raises:
          ChatFormatError: The messages cannot be formatted as a prompt.
        """
        bos_id = self._tokenizer.bos_id
        encode_markup = cache(self._tokenizer.encode)  # every message has the same markup
        ids = [
            token_id
            for text, markup in self._parts(messages, ending)
            if text
            for token_id in (encode_markup(text) if markup else self._tokenizer.encode(text, control_tokens=False))
            if token_id != bos_id
        ]
        return ids if bos_id is None else [bos_id, *ids]

    def render(self, messages: Sequence[Message], ending: Ending = NEW_TURN) -> str:
        """Returns the prompt as text for display; `encode` keeps messages and markup apart.

        Raises:
          ChatFormatError: The messages cannot be formatted as a prompt.
        """
        text = "".join(part.text for part in self._parts(messages, ending))
        return bos_name(self._tokenizer) + text.removeprefix(bos_name(self._tokenizer))

    def _parts(self, messages: Sequence[Message], ending: Ending) -> list[Part]:
        trimmed = normalized(messages)
        if ending.stay_open:
            trimmed[-1] = _continued(trimmed[-1].role, messages[-1].content, ending)
        return self._layout(trimmed, ending)


def load_chat_format(directory: Path | None, tokenizer: Tokenizer) -> ChatFormat:
    """Returns the chat format of a checkpoint: its template if it has one, or else Gemma's turns.

    If the tokenizer has no text, or no marks for Gemma's turns, the format refuses all messages.

    Args:
      directory: Folder of the checkpoint; None for random weights.
      tokenizer: Tokenizer of the model.

    Raises:
      CheckpointError: The checkpoint's template is broken.
    """
    if not tokenizer.has_text:
        return ChatFormat(tokenizer, _refusal("this checkpoint has no tokenizer: send token ids to /v1/completions"))
    if directory is not None and (template := load_template(directory, tokenizer)) is not None:
        return ChatFormat(tokenizer, template, takes_tools=template.takes_tools)
    for mark in (START_OF_TURN, END_OF_TURN):
        if not _has_control_token(tokenizer, mark):
            return ChatFormat(
                tokenizer,
                _refusal(f"this checkpoint's tokenizer has no {mark}, and no chat template: use /v1/completions"),
            )
    return ChatFormat(tokenizer, gemma_turns)


def _continued(role: str, text: str, ending: Ending) -> Message:
    """Returns the last message to be continued, with its trailing whitespace, which belongs to the output."""
    if ending.add_header:
        raise ChatFormatError("continue_final_message and add_generation_prompt exclude each other")
    if role != "assistant":
        raise ChatFormatError("the last message must be the assistant's, as it is to be continued")
    return Message(role, text.lstrip())


def _refusal(reason: str) -> Layout:
    def refuse(messages: Sequence[Message], ending: Ending) -> list[Part]:
        raise ChatFormatError(reason)

    return refuse


def _has_control_token(tokenizer: Tokenizer, name: str) -> bool:
    ids = tokenizer.encode(name)
    return len(ids) == 1 and tokenizer.is_control(ids[0])
