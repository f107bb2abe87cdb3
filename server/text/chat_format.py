"""Conversations in a form that is common to all APIs, and the formats that make prompts of their messages.

A format folds messages into turns, lays these out as parts, and encodes the parts.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, Literal, NamedTuple
from uuid import uuid4

from .tokenizer import END_OF_TURN, START_OF_TURN, Tokenizer

_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "model": "assistant",
}


class ChatFormatError(ValueError):
    """Messages cannot be formatted as a prompt. The message is one line and safe to show to the client."""


@dataclass(frozen=True, slots=True)
class Message:
    """A chat message.

    Attributes:
      role: Role of the author.
      content: Text of the message.
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Ending:
    """How a prompt ends, and the variables of a template.

    Attributes:
      add_header: Whether the header of an assistant's turn ends the prompt, even after an assistant's message.
      stay_open: Whether the last message, the assistant's, stays open, so that the model continues it. Excludes a
        header.
      variables: Variables for a checkpoint's template; Gemma's own format has none.
    """

    add_header: bool = True
    stay_open: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)


NEW_TURN: Final = Ending()
"""Ending by the header of a new assistant's turn."""


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A call of a function in an assistant's message.

    Attributes:
      arguments: JSON text.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ConversationMessage:
    """A message of a conversation.

    Attributes:
      role: Role that the chat format knows, or `tool` for the result of a call.
      content: Text, or the texts of the message's parts; None without text.
      calls: Function calls, in an assistant's message.
      call_id: Id of the call whose result this message is.
    """

    role: str
    content: str | tuple[str, ...] | None = None
    calls: tuple[FunctionCall, ...] = ()
    call_id: str | None = None


@dataclass(frozen=True, slots=True)
class FunctionTool:
    """A function that the model may call.

    Attributes:
      parameters: JSON schema of the arguments; empty without arguments.
      strict: Whether a keyword of the schema that cannot be enforced is an error. Otherwise it is dropped and reported.
    """

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolOptions:
    """Tools of a request, and how the model may use them.

    Attributes:
      tools: All tools.
      mode: Whether the model must not, may or must call a tool.
      names: Names of the only tools that may be called; None allows all of them. The prompt introduces all tools in any
        case, so that its cached prefix stays the same.
      parallel: Whether a response may hold several calls.
    """

    tools: Sequence[FunctionTool] = ()
    mode: Literal["none", "auto", "required"] = "auto"
    names: Sequence[str] | None = None
    parallel: bool = True

    @property
    def introduced(self) -> Sequence[FunctionTool]:
        """Tools that the prompt introduces."""
        return () if self.mode == "none" else self.tools


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation to encode as a prompt.

    Attributes:
      messages: Messages, oldest first.
      ending: How the prompt ends.
      tools: Tools and tool choice; None if the request has neither.
    """

    messages: Sequence[ConversationMessage]
    ending: Ending = NEW_TURN
    tools: ToolOptions | None = None


class Part(NamedTuple):
    """A part of a prompt.

    Attributes:
      text: Text of the part.
      markup: Whether names of control tokens become those tokens; never in a message's text.
    """

    text: str
    markup: bool = True


type Layout = Callable[[Sequence[Message], Ending], list[Part]]
"""Lays out messages (roles system, user, assistant; in any order) as a prompt."""

type Writer = Callable[[Sequence[Message], bool], list[Part]]
"""Writes messages, all of them closed; the flag adds the header of an assistant's turn."""


class ChatFormat:
    """Renders and encodes chat messages.

    Roles are system, developer (the same), user and assistant (or model), in any order; the layout folds messages that
    its format has no role for. Whitespace around each message is stripped, except at an open end. Names of control
    tokens inside of a message are plain text.

    Args:
      tokenizer: Tokenizer of the model.
      layout: Layout of prompts.
      takes_tools: Whether the layout describes tools itself, given the variable `tools`.

    Attributes:
      tokenizer: Tokenizer of the model.
    """

    def __init__(self, tokenizer: Tokenizer, layout: Layout, *, takes_tools: bool = False) -> None:
        self.takes_tools = takes_tools
        self.tokenizer = tokenizer
        self._layout = layout
        self._bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]

    def encode(self, messages: Sequence[Message], ending: Ending = NEW_TURN) -> list[int]:
        """Returns the prompt's token ids, with BOS only at the start.

        Raises:
          ChatFormatError: The messages cannot be formatted as a prompt.
        """
        return self._bos + self._encoded(self._parts(messages, ending))

    def encode_after_reply(self, messages: Sequence[Message], ending: Ending = NEW_TURN) -> list[int]:
        """Returns the ids that follow the text of an assistant's message: the markup that closes it, then new messages.

        Raises:
          ChatFormatError: The messages cannot be formatted, or begin with an assistant's.
        """
        return self._encoded(self._parts_after_reply(messages, ending))

    def decode(self, token_ids: Sequence[int], max_messages: int) -> list[Message] | None:
        """Returns the messages of a chat that ends with a reply, closed by an end token or open.

        `encode` gives them the same tokens, except that a reply may have its text in other tokens, which a model chose.
        Messages that the layout folds stay folded.

        Returns:
          The messages; None if the tokens are not such a chat, or one of more messages.
        """
        ids = list(token_ids)
        if ids and self.tokenizer.is_control(ids[-1]):
            ids.pop()
        for roles in (("user", "assistant"), ("system", "user", "assistant")):
            try:
                pieces = itertools.islice(self._split(ids, roles), max_messages + 1)
                messages = [self._message(role, piece) for role, piece in pieces]
            except ChatFormatError:
                continue
            if messages[-1].role == "assistant" and len(messages) <= max_messages:
                return messages
        return None

    def _split(self, ids: list[int], roles: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
        """Yields the role and the tokens of each message.

        Args:
          ids: Tokens of a chat.
          roles: Roles of its first messages. The last two roles alternate afterwards.

        Raises:
          ChatFormatError: The tokens begin with other markup.
        """
        text = "".join(map(chr, ids))  # a character for each token, since `str` finds sequences
        start, *marks = ["".join(map(chr, mark)) for mark in self._marks((*roles, "user"))]
        mark_after = dict(zip(roles, marks, strict=False))
        if not text.startswith(start):
            raise ChatFormatError("the tokens begin with other markup")
        position = len(start)
        for role in itertools.chain(roles, itertools.cycle(roles[-2:])):
            end = text.find(mark_after[role], position)
            if end < 0:
                yield role, ids[position:]
                return
            yield role, ids[position:end]
            position = end + len(mark_after[role])

    def _marks(self, roles: Sequence[str]) -> list[list[int]]:
        """Returns the tokens before, between and after messages with these roles.

        Raises:
          ChatFormatError: The layout folds or changes such messages.
        """
        probe = [Message(role, uuid4().hex) for role in roles]
        parts = self._layout(probe, NEW_TURN)
        groups = itertools.groupby(parts, key=lambda part: part.markup)
        start, *marks = [self._encoded(group) for is_markup, group in groups if is_markup]
        texts = [part.text for part in parts if not part.markup]
        if texts != [message.content for message in probe] or len(marks) != len(probe) or not all(marks):
            raise ChatFormatError("the layout folds or changes these messages")
        return [self._bos + start, *marks]

    def _message(self, role: str, ids: list[int]) -> Message:
        """Returns the message with these tokens.

        Raises:
          ChatFormatError: A reply has control tokens, or another message has its text in other tokens than a prompt.
        """
        text = self.tokenizer.decode(ids)
        if role == "assistant":
            is_message = not any(map(self.tokenizer.is_control, ids))
        else:
            is_message = ids == self.tokenizer.encode(text.strip(), control_tokens=False)
        if not is_message:
            raise ChatFormatError("the tokens have other markup")
        return Message(role, text)

    def _encoded(self, parts: Iterable[Part]) -> list[int]:
        """Returns the ids of parts without BOS."""
        encode_markup = cache(self.tokenizer.encode)  # every message has the same markup
        ids: list[int] = []
        for text, markup in parts:
            if text:
                part = encode_markup(text) if markup else self.tokenizer.encode(text, control_tokens=False)
                ids += [token_id for token_id in part if token_id != self.tokenizer.bos_id]
        return ids

    def _parts_after_reply(self, messages: Sequence[Message], ending: Ending) -> list[Part]:
        """Returns the parts after the text of an assistant's message that precedes the messages."""
        if normalized(messages)[0].role == "assistant":
            raise ChatFormatError(
                "the first message after a state must not be the assistant's: its own is the last one"
            )
        reply = Part(uuid4().hex, markup=False)  # a text that no message has
        parts = self._parts([Message("user", "-"), Message("assistant", reply.text), *messages], ending)
        if reply not in parts:
            raise ChatFormatError("the checkpoint's chat template does not keep an assistant's message as it is")
        return parts[parts.index(reply) + 1 :]

    def _parts(self, messages: Sequence[Message], ending: Ending) -> list[Part]:
        trimmed = normalized(messages)
        if ending.stay_open:
            trimmed[-1] = _continued(trimmed[-1].role, messages[-1].content, ending)
        return self._layout(trimmed, ending)


def lay_out(messages: Sequence[Message], ending: Ending, write: Writer) -> list[Part]:
    """Returns the prompt that `write` writes, up to the ending.

    Raises:
      ChatFormatError: `write` cannot write the messages, or changes the text of the last one.
    """
    if not ending.stay_open:
        return write(messages, ending.add_header)
    if not messages[-1].content:
        return write(messages[:-1], True)
    return _open_end(write(messages, False), messages[-1].content)


def gemma_turns(messages: Sequence[Message], ending: Ending) -> list[Part]:
    """Returns a prompt in Gemma's format, which has no system role and whose turns alternate."""
    return lay_out(fold(messages), ending, _write_turns)


def _write_turns(turns: Sequence[Message], add_header: bool) -> list[Part]:
    """Writes turns. Parts are encoded separately, so that no piece crosses a mark or the end of a header."""
    parts: list[Part] = []
    for turn in turns:
        role = "model" if turn.role == "assistant" else "user"
        content = Part(turn.content, markup=False)
        parts += (Part(START_OF_TURN), Part(role), Part("\n"), content, Part(END_OF_TURN), Part("\n"))
    if add_header:
        parts += (Part(START_OF_TURN), Part("model"), Part("\n"))
    return parts


def _open_end(parts: list[Part], text: str) -> list[Part]:
    """Returns the parts up to the last message's text, without the markup that closes it."""
    last = max(position for position, part in enumerate(parts) if not part.markup)
    if parts[last].text != text:
        raise ChatFormatError("the checkpoint's chat template does not end with the last message")
    return parts[: last + 1]


def normalized(messages: Sequence[Message]) -> list[Message]:
    """Returns messages with stripped texts and only the roles system, user and assistant.

    Raises:
      ChatFormatError: A role is unknown, or the list of messages is empty.
    """
    if not messages:
        raise ChatFormatError("there must be at least one message")
    try:
        return [Message(_ROLES[message.role], message.content.strip()) for message in messages]
    except KeyError as error:
        role = error.args[0]
        raise ChatFormatError(
            f"the role {role!r:.100} is not supported; roles are system, developer, user, assistant and tool"
        ) from None


def fold_after_system(messages: Sequence[Message]) -> list[Message]:
    """Returns one system message and alternating turns, for formats that accept a system role only at the start.

    Leading system messages are joined if a user's message follows them; all others are folded into user turns.
    """
    leading = list(itertools.takewhile(lambda message: message.role == "system", messages))
    rest = messages[len(leading) :]
    text = "\n\n".join([message.content for message in leading if message.content])
    if not text or not rest or rest[0].role != "user":
        return fold(messages)
    return [Message("system", text), *fold(rest)]


def fold(messages: Sequence[Message]) -> list[Message]:
    """Returns alternating turns that start with the user's, for formats without a system role.

    System messages count as the user's and keep their position. Adjacent messages of one side are joined by an empty
    line. An empty user turn precedes a leading assistant's turn. A turn depends only on its own messages, so that the
    prompt of a longer conversation starts with all closed turns of a shorter one.
    """
    turns: list[tuple[str, list[str]]] = []
    for message in messages:
        side = "assistant" if message.role == "assistant" else "user"
        if not turns and side == "assistant":
            turns.append(("user", []))
        if not turns or turns[-1][0] != side:
            turns.append((side, []))
        if message.content:
            turns[-1][1].append(message.content)
    return [Message(side, "\n\n".join(texts)) for side, texts in turns]


def _continued(role: str, text: str, ending: Ending) -> Message:
    """Returns the last message to be continued, with its trailing whitespace, which belongs to the output."""
    if ending.add_header:
        raise ChatFormatError("continue_final_message and add_generation_prompt exclude each other")
    if role != "assistant":
        raise ChatFormatError("the last message must be the assistant's, as it is to be continued")
    return Message(role, text.lstrip())
