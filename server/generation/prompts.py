"""Converts texts, token ids and conversations to prompts, and prompts back to text."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

from ...engine import ID_BYTES, MAX_PREDICTION, MAX_TOKENS, SavedState, pack_ids
from ..constraints.tool_calls import call_text, described, result_text, tools_text
from ..errors.request_errors import bad_value
from ..text.chat_format import ChatFormatError, Conversation, ConversationMessage, FunctionTool, Message
from ..text.served_model import ServedModel
from ..text.tokenizer import TextUnavailableError, Tokenizer
from .admission import admission
from .state_store import StoredState

_LONG: Final = 8192
"""Number of characters or token ids above which a worker thread encodes them, which takes a millisecond or two."""

_MANY: Final = 64
"""Number of messages above which a worker thread encodes them."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids that a generation begins with.

    Attributes:
      token_ids: At least one id, each within the vocabulary, packed by `pack_ids`.
      from_text: Whether the ids were encoded from text, in which control tokens were spelled out.
      adds_bos: Whether the first id is a BOS that the client did not send.
      is_chat: Whether the prompt is a conversation.
    """

    token_ids: Sequence[int]
    from_text: bool = False
    adds_bos: bool = False
    is_chat: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", pack_ids(self.token_ids))

    def after(self, token_ids: Sequence[int]) -> "Prompt":
        """Returns the prompt with these ids in front of it."""
        return replace(self, token_ids=pack_ids(token_ids, self.token_ids))

    def text(self, tokenizer: Tokenizer) -> str:
        """Returns the prompt's text."""
        return b"".join(self.pieces(tokenizer)).decode("utf-8", "replace")

    def pieces(self, tokenizer: Tokenizer) -> Iterator[bytes]:
        """Yields the bytes of each token in the prompt's text; joined, they are the text that was sent."""
        for position, token_id in enumerate(self.token_ids):
            if self.adds_bos and position == 0:
                yield b""
            elif self.from_text and tokenizer.is_control(token_id):
                yield tokenizer.token_text(token_id).encode()
            else:
                yield tokenizer.token_bytes(token_id)


class Cut(NamedTuple):
    """Maximum length of a prompt.

    Attributes:
      limit: Maximum number of tokens; None or -1 sets no limit.
      side: `left` drops the first tokens, `right` the last.
    """

    limit: int | None = None
    side: Literal["left", "right"] = "left"


WHOLE: Final = Cut()
"""No maximum length."""


class PromptEncoder:
    """Encodes prompts, long ones on worker threads, and charges their memory to the current admission."""

    def __init__(self, model: ServedModel) -> None:
        self._tokenizer = model.tokenizer
        self._chat_format = model.chat_format
        self._end_token_ids = model.end_token_ids

    async def completions(
        self,
        prompts: Sequence[str | list[int]],
        *,
        add_bos: bool,
        param: str = "prompt",
        state: StoredState | None = None,
        cut: Cut = WHOLE,
    ) -> list[Prompt]:
        """Encodes the prompts of a completion, each behind the tokens of a saved state.

        Args:
          prompts: Texts, in which control tokens may be spelled out, or token ids.
          add_bos: Whether a BOS is put in front of texts.
          param: Field that holds the prompts.
          state: Saved state that each prompt continues.
          cut: Maximum length of each prompt without the state.

        Raises:
          ApiError: The model has no tokenizer for a text, or a prompt has no tokens or one outside the vocabulary, or
            the prompts would have too many tokens together.
        """

        def encode() -> list[Prompt]:
            encoded = [
                self._text(prompt, add_bos) if isinstance(prompt, str) else self.token_ids(prompt, param)
                for prompt in prompts
            ]
            return [self.cut(prompt, cut) for prompt in encoded]

        encoded = await self._encoded(sum(map(len, prompts)), encode)
        return encoded if state is None else await self._after(state, encoded)

    async def chat(
        self,
        conversation: Conversation,
        *,
        param: str = "messages",
        state: StoredState | None = None,
        cut: Cut = WHOLE,
    ) -> Prompt:
        """Encodes a conversation behind the tokens of a saved state.

        The prompt closes the state's last message.

        Args:
          param: Field that holds the messages.
          state: Saved state that the conversation continues.
          cut: Maximum length of the prompt without the state.

        Raises:
          ApiError: The messages cannot be encoded as a prompt.
        """

        def encode() -> list[Prompt]:
            return [self.cut(self.encoded_chat(conversation, param=param, state=state), cut)]

        encoded = await self._encoded(_num_characters(conversation.messages), encode)
        return encoded[0] if state is None else (await self._after(state, encoded))[0]

    def encoded_chat(
        self, conversation: Conversation, *, param: str = "messages", state: StoredState | None = None
    ) -> Prompt:
        """Returns the prompt of a conversation, without the tokens of a state that it continues.

        It is encoded on the calling thread, and no memory is charged.

        Raises:
          ApiError: The messages cannot be encoded as a prompt.
        """
        plain = _plain(conversation.messages, param, has_earlier=state is not None)
        ending, tools = conversation.ending, () if conversation.tools is None else conversation.tools.introduced
        if tools and self._chat_format.takes_tools:
            ending = replace(ending, variables={**ending.variables, "tools": self._described(tools)})
        elif tools and state is None:  # the state's tokens introduce the tools
            plain = _with_tools_text(tools, plain)
        encode = self._chat_format.encode if state is None else self._chat_format.encode_after_reply
        try:
            return Prompt(encode(plain, ending), from_text=True, is_chat=True)
        except ChatFormatError as error:
            raise bad_value(param, str(error), is_private=True) from None

    async def prediction(self, text: str) -> Sequence[int]:
        """Returns the token ids of a predicted output, as many as drafts are looked up in, packed by `pack_ids`.

        Raises:
          ApiError: The model has no tokenizer.
        """

        def encode() -> list[Prompt]:
            token_ids = self._tokenizer.encode(text, control_tokens=False)[:MAX_PREDICTION]
            return [Prompt(token_ids)]

        try:
            (encoded,) = await self._encoded(len(text), encode)
        except TextUnavailableError as error:
            raise bad_value("prediction", f"prediction: {error}") from None
        return encoded.token_ids

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
        return Prompt(token_ids)

    def cut(self, prompt: Prompt, cut: Cut) -> Prompt:
        """Returns the prompt with at most as many tokens as allowed. A leading BOS is kept, and counts."""
        if cut.limit is None or cut.limit == -1 or len(prompt.token_ids) <= cut.limit:
            return prompt
        num_in_front = int(prompt.token_ids[0] == self._tokenizer.bos_id)
        front, rest = prompt.token_ids[:num_in_front], prompt.token_ids[num_in_front:]
        room = cut.limit - num_in_front
        kept = rest[:room] if cut.side == "right" else rest[len(rest) - room :]
        return replace(prompt, token_ids=pack_ids(front, kept))

    def _described(self, tools: Sequence[FunctionTool]) -> list[dict[str, Any]]:
        """Returns the tools as a template's variable.

        Control tokens in them are refused, because text that a template writes is encoded as markup.
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
        return Prompt(token_ids, from_text=True, adds_bos=bos_id is not None)

    async def _encoded(self, length: int, encode: Callable[[], list[Prompt]]) -> list[Prompt]:
        """Returns the prompts from `encode`, and charges them.

        Args:
          length: Number of characters or token ids to encode.
        """
        own = admission.get()
        is_long = length >= _LONG or own.is_large
        prompts = await own.run(encode, is_long=True) if is_long else encode()
        await own.keep(ID_BYTES * sum([len(prompt.token_ids) for prompt in prompts]))
        return prompts

    async def _after(self, state: StoredState, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Returns the prompts, each after the token history of a saved state.

        A chat closes the state's last message itself, so an end token of that message is left out.

        Raises:
          ApiError: The prompts would have too many tokens together.
        """
        history = state.state
        num_tokens = history.num_tokens * len(prompts)
        if num_tokens > MAX_TOKENS:
            message = (
                f"prompt: {len(prompts)} prompts after a state of {history.num_tokens} tokens are more than"
                f" {MAX_TOKENS} tokens: send fewer in one request"
            )
            raise bad_value("prompt", message)

        def put_behind() -> list[Prompt]:
            token_ids, without_end = history.token_ids, without_end_token(history, self._end_token_ids)
            return [prompt.after(without_end if prompt.is_chat else token_ids) for prompt in prompts]

        own = admission.get()
        await own.keep(ID_BYTES * num_tokens)
        return await own.run(put_behind, is_long=num_tokens >= _LONG)


def without_end_token(state: SavedState, end_token_ids: Sequence[int]) -> Sequence[int]:
    """Returns a state's tokens without an end token, unless its snapshot covers that too."""
    num_covered = 0 if state.snapshot is None else state.snapshot.length
    token_ids = state.token_ids
    return token_ids[:-1] if token_ids[-1] in end_token_ids and len(token_ids) > num_covered else token_ids


def message_text(message: ConversationMessage) -> str:
    """Returns the text of all parts of a message, joined by line breaks."""
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return "\n".join(message.content)


def _num_characters(messages: Sequence[ConversationMessage]) -> int:
    """Returns the number of characters of messages, or a large number if there are many messages."""
    if len(messages) >= _MANY:
        return _LONG
    texts = [
        text for each in messages for text in ([each.content] if isinstance(each.content, str) else each.content or ())
    ]
    return sum(map(len, texts)) + sum([len(call.arguments) for each in messages for call in each.calls])


_RESULT_HINTS: Final[Mapping[str, str]] = {
    "input": ": send an item of the type function_call, and after it one of the type function_call_output"
}
"""Ends of errors about results of calls, by the field of the body."""


def _plain(messages: Sequence[ConversationMessage], param: str, *, has_earlier: bool) -> list[Message]:
    """Returns messages with their calls or results as text, since chat formats have no separate place for them.

    Args:
      has_earlier: Whether tokens before the messages may contain calls.

    Raises:
      ApiError: A message lacks content, or its role has no calls; or a result has no call before it, and would read as
        text of a user.
    """
    plain, call_ids = [], set[str | None]()
    for message in messages:
        if message.role == "tool" and message.call_id is None:
            raise bad_value(
                param, f"{param}: a message of the role 'tool' needs tool_call_id{_RESULT_HINTS.get(param, '')}"
            )
        if message.role == "tool" and message.call_id not in call_ids and not has_earlier:
            problem = f"no call before it has the id of the result, {message.call_id!r:.100}"
            raise bad_value(param, f"{param}: {problem}{_RESULT_HINTS.get(param, '')}")
        if message.content is None and message.role != "assistant":
            raise bad_value(param, f"a message of the role {message.role!r:.100} needs content")
        if message.role == "tool":
            plain.append(Message("user", result_text(message_text(message))))
        elif message.calls:
            call_ids.update([call.id for call in message.calls])
            plain.append(_with_calls(message, param))
        else:
            plain.append(Message(message.role, message_text(message)))
    return plain


def _with_calls(message: ConversationMessage, param: str) -> Message:
    if message.role != "assistant":
        raise bad_value(param, f"a message of the role {message.role!r:.100} cannot have tool_calls")
    calls = (call_text(call.name, call.arguments) for call in message.calls)
    return Message("assistant", "\n".join((*filter(None, [message_text(message)]), *calls)))


def _with_tools_text(tools: Sequence[FunctionTool], messages: Sequence[Message]) -> list[Message]:
    """Returns the messages with the tools introduced after the leading system texts."""
    leading = itertools.takewhile(lambda message: message.role in ("system", "developer"), messages)
    position = sum(1 for _ in leading)
    return [*messages[:position], Message("system", tools_text(tools)), *messages[position:]]
