"""The format of a chat: renders messages, and encodes them."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ..tokenizer import END_OF_TURN, START_OF_TURN, Tokenizer
from .layout import ANSWER, Ending, Layout, Part, gemma_turns
from .template import bos_name, load_template
from .turns import ChatFormatError, Message, normalized


class ChatFormat:
    """Renders messages and encodes them.

    Roles are system, developer (the same), user and assistant (or model), in any order: the layout folds what its
    format has no place for. White space around each text is dropped, but for that at an open end. Control tokens
    inside a text are plain text.

    Attributes:
      takes_tools: whether the layout introduces tools by itself, if they are a variable.
    """

    def __init__(self, tokenizer: Tokenizer, layout: Layout, *, takes_tools: bool = False) -> None:
        self.takes_tools = takes_tools
        self._tokenizer = tokenizer
        self._layout = layout

    def encode(self, messages: Sequence[Message], ending: Ending = ANSWER) -> list[int]:
        """The prompt's ids, with BOS in front and nowhere else.

        Raises:
          ChatFormatError: the messages cannot become a prompt.
        """
        bos_id = self._tokenizer.bos_id
        encode_markup = cache(self._tokenizer.encode)  # the same few marks come with each message
        ids = [
            token_id
            for text, markup in self._parts(messages, ending)
            if text
            for token_id in (encode_markup(text) if markup else self._tokenizer.encode(text, control_tokens=False))
            if token_id != bos_id
        ]
        return ids if bos_id is None else [bos_id, *ids]

    def render(self, messages: Sequence[Message], ending: Ending = ANSWER) -> str:
        """The prompt as people read it. It is not what `encode` encodes: that keeps texts and markup apart.

        Raises:
          ChatFormatError: the messages cannot become a prompt.
        """
        text = "".join(part.text for part in self._parts(messages, ending))
        return bos_name(self._tokenizer) + text.removeprefix(bos_name(self._tokenizer))

    def _parts(self, messages: Sequence[Message], ending: Ending) -> list[Part]:
        trimmed = normalized(messages)
        if ending.stay_open:
            trimmed[-1] = _continued(trimmed[-1].role, messages[-1].content, ending)
        return self._layout(trimmed, ending)


def load_chat_format(directory: Path | None, tokenizer: Tokenizer) -> ChatFormat:
    """The format of a checkpoint: its own template if it has one, else Gemma's turns.

    Where the tokenizer has no text, or no marks for Gemma's turns, the format refuses every conversation.

    Raises:
      CheckpointError: the checkpoint's template is broken.
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
    """The last message, whose white space at the end is a part of the answer so far."""
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
