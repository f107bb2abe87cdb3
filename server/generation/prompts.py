"""Converts texts, token ids and conversations to prompts, and prompts back to text."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from ...engine import MAX_TOKENS, SavedState
from ..constraints.tools import call_text, described, result_text, tools_text
from ..errors.request_errors import bad_value
from ..tenancy.request_memory import is_large, keep
from ..tenancy.workers import Workers
from ..text.chat_template import ChatFormatError, Message
from ..text.conversation import Conversation, ConversationMessage, FunctionTool
from ..text.served_model import ServedModel
from ..text.tokenizer import TextUnavailableError, Tokenizer

_LONG: Final = 8192
"""Number of characters or token ids from which on a worker thread encodes: it takes a millisecond or two."""

_MANY: Final = 64
"""Number of messages from which on a worker thread encodes."""

_TEXT_ID_BYTES: Final = 40
"""Memory of a token id that was encoded from text, and of its place in the prompt."""

ID_BYTES: Final = 8
"""Memory of a token id's place in a prompt, if the id itself is held elsewhere."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids that a generation begins with.

    Attributes:
      token_ids: At least one id, each within the vocabulary.
      from_text: Whether the ids were encoded from text. Control tokens among them were spelled out there.
      adds_bos: Whether the first id is a BOS that the client did not send.
    """

    token_ids: tuple[int, ...]
    from_text: bool = False
    adds_bos: bool = False

    def after(self, token_ids: tuple[int, ...]) -> "Prompt":
        """Returns the prompt with these ids in front of it."""
        return replace(self, token_ids=token_ids + self.token_ids)

    def pieces(self, tokenizer: Tokenizer) -> list[bytes]:
        """Returns the bytes of each token in the prompt's text; joined, they are the text that was sent."""
        return list(self._pieces(tokenizer))

    def num_text_bytes(self, tokenizer: Tokenizer) -> int:
        """Returns the number of bytes of the text in UTF-8."""
        return sum(map(len, self._pieces(tokenizer)))

    def text(self, tokenizer: Tokenizer) -> str:
        """Returns the prompt's text."""
        return b"".join(self._pieces(tokenizer)).decode("utf-8", "replace")

    def _pieces(self, tokenizer: Tokenizer) -> Iterator[bytes]:
        for position, token_id in enumerate(self.token_ids):
            if self.adds_bos and position == 0:
                yield b""
            elif self.from_text and tokenizer.is_control(token_id):
                yield tokenizer.token_text(token_id).encode()
            else:
                yield tokenizer.token_bytes(token_id)


class PromptEncoder:
    """Encodes prompts, long ones on worker threads, and books their memory for the current request."""

    def __init__(self, model: ServedModel, workers: Workers | None = None) -> None:
        self._tokenizer = model.tokenizer
        self._chat_format = model.chat_format
        self._workers = workers or Workers()

    async def completions(self, prompts: Sequence[str | list[int]], *, add_bos: bool) -> list[Prompt]:
        """Encodes the prompts of a completion.

        Args:
          prompts: Texts, in which control tokens may be spelled out, or token ids.
          add_bos: Whether a BOS is put in front of texts.

        Raises:
          ApiError: There is no tokenizer for a text, or a prompt has no tokens or one outside the vocabulary.
        """

        def encode() -> list[Prompt]:
            return [
                self._text(prompt, add_bos) if isinstance(prompt, str) else self.token_ids(prompt) for prompt in prompts
            ]

        encoded = await self._off_loop(sum(map(len, prompts)), encode)
        for prompt in encoded:
            keep(len(prompt.token_ids) * (_TEXT_ID_BYTES if prompt.from_text else ID_BYTES))
        return encoded

    def token_ids(self, token_ids: Sequence[int], param: str = "prompt") -> Prompt:
        """Returns a prompt of these ids.

        Args:
          param: Field that holds the ids.

        Raises:
          ApiError: An id is outside the vocabulary.
        """
        if max(token_ids) >= self._tokenizer.vocab_size:
            raise bad_value(
                param,
                f"token id {max(token_ids)} is outside the vocabulary of {self._tokenizer.vocab_size} tokens",
            )
        return Prompt(tuple(token_ids))

    async def after(self, state: SavedState, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Returns the prompts, each behind the token history of a saved state.

        Raises:
          ApiError: The prompts would have too many tokens together.
        """
        num_tokens = state.num_tokens * len(prompts)
        if num_tokens > MAX_TOKENS:
            message = (
                f"prompt: {len(prompts)} prompts behind a state of {state.num_tokens} tokens are more than"
                f" {MAX_TOKENS} tokens: send fewer in one request"
            )
            raise bad_value("prompt", message)

        keep(ID_BYTES * num_tokens)

        def put_behind() -> list[Prompt]:
            token_ids = state.token_ids
            return [prompt.after(token_ids) for prompt in prompts]

        return await self._off_loop(num_tokens, put_behind)

    async def chat(self, conversation: Conversation, *, param: str = "messages") -> Prompt:
        """Encodes a conversation.

        Args:
          param: Field that holds the messages.

        Raises:
          ApiError: The messages cannot be encoded as a prompt.
        """
        messages = conversation.messages
        length = _LONG if len(messages) >= _MANY else sum(map(_num_characters, messages))
        try:
            token_ids = await self._off_loop(length, lambda: self._chat(conversation, param))
        except ChatFormatError as error:
            raise bad_value(param, str(error), is_private=True) from None
        keep(len(token_ids) * _TEXT_ID_BYTES)
        return Prompt(token_ids, from_text=True)

    def truncated(self, prompt: Prompt, limit: int | None, side: Literal["left", "right"] = "left") -> Prompt:
        """Returns the prompt with at most `limit` tokens. A leading BOS stays, and counts.

        Args:
          limit: Maximum number of tokens; None or -1 is no limit.
          side: `left` drops the first tokens, `right` the last.
        """
        if limit is None or limit == -1 or len(prompt.token_ids) <= limit:
            return prompt
        num_in_front = int(prompt.token_ids[0] == self._tokenizer.bos_id)
        front, rest = prompt.token_ids[:num_in_front], prompt.token_ids[num_in_front:]
        room = limit - num_in_front
        kept = rest[:room] if side == "right" else rest[len(rest) - room :]
        return replace(prompt, token_ids=front + kept)

    def _chat(self, conversation: Conversation, param: str) -> tuple[int, ...]:
        _check_results(conversation.messages, param)
        plain = [_plain(message, param) for message in conversation.messages]
        ending, tools = conversation.ending, () if conversation.tools is None else conversation.tools.introduced
        if tools and self._chat_format.takes_tools:
            ending = ending.with_variable("tools", self._described(tools))
        elif tools:
            plain = _with_tools_text(tools, plain)
        return tuple(self._chat_format.encode(plain, ending))

    def _described(self, tools: Sequence[FunctionTool]) -> list[dict[str, Any]]:
        """Returns the tools as a template's variable.

        Control tokens in them are refused: text that a template writes itself is encoded as markup.
        """
        described_tools = [described(tool) for tool in tools]
        token_ids = self._tokenizer.encode(json.dumps(described_tools, ensure_ascii=False))
        if names := [self._tokenizer.token_text(each) for each in token_ids if self._tokenizer.is_control(each)]:
            raise bad_value("tools", f"tools: the name of a control token, {names[0]}, cannot be a part of them")
        return described_tools

    def _text(self, text: str, add_bos: bool) -> Prompt:
        bos_id = self._tokenizer.bos_id if add_bos else None
        try:
            token_ids = self._tokenizer.encode(text)
        except TextUnavailableError as error:
            raise bad_value("prompt", str(error)) from None
        if bos_id is not None:
            token_ids = [bos_id, *token_ids]
        if not token_ids:
            raise bad_value("prompt", "the prompt is empty: it has no tokens")
        return Prompt(tuple(token_ids), from_text=True, adds_bos=bos_id is not None)

    async def _off_loop[T](self, length: int, encode: Callable[[], T]) -> T:
        if length < _LONG and not is_large():
            return encode()
        return await self._workers.run(encode)


def message_text(message: ConversationMessage) -> str:
    """Returns the text of all parts of a message, joined by line breaks."""
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return "\n".join(message.content)


def _num_characters(message: ConversationMessage) -> int:
    return len(message_text(message)) + sum(len(call.arguments) for call in message.calls)


def _check_results(messages: Sequence[ConversationMessage], param: str) -> None:
    """Raises an error for a result without a call before it, which would read as a user's text."""
    call_ids: set[str | None] = set()
    for message in messages:
        if message.role == "tool" and message.call_id is None:
            raise bad_value(param, f"{param}: a message of the role 'tool' needs tool_call_id")
        if message.role == "tool" and message.call_id not in call_ids:
            raise bad_value(param, f"{param}: no call before it has the id of the result, {message.call_id!r:.100}")
        call_ids.update(call.id for call in message.calls)


def _plain(message: ConversationMessage, param: str) -> Message:
    """Returns a message with its calls or result as text: no chat format has a place of its own for them."""
    if message.content is None and message.role != "assistant":
        raise bad_value(param, f"a message of the role {message.role!r:.100} needs content")
    if message.role == "tool":
        return Message("user", result_text(message_text(message)))
    if not message.calls:
        return Message(message.role, message_text(message))
    if message.role != "assistant":
        raise bad_value(param, f"a message of the role {message.role!r:.100} cannot have tool_calls")
    calls = (call_text(call.name, call.arguments) for call in message.calls)
    return Message("assistant", "\n".join((*filter(None, [message_text(message)]), *calls)))


def _with_tools_text(tools: Sequence[FunctionTool], messages: Sequence[Message]) -> list[Message]:
    """Returns the messages with the tools introduced behind the leading system texts."""
    leading = itertools.takewhile(lambda message: message.role in ("system", "developer"), messages)
    position = sum(1 for _ in leading)
    return [*messages[:position], Message("system", tools_text(tools)), *messages[position:]]
