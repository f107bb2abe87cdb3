"""Chat messages to prompt ids: Gemma's turn format, or the template that a checkpoint brings."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, Never

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..engine.errors import CheckpointError
from .tokenizer import END_OF_TURN, START_OF_TURN, Tokenizer, read_tokenizer_config

_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "model": "assistant",
}


class ChatFormatError(ValueError):
    """These messages cannot become a prompt; the text is one line, fit to show to the caller."""


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Ending:
    """How a prompt ends, and what else a template gets to know.

    Attributes:
      add_header: with the header of the assistant's answer.
      stay_open: within the last message, the assistant's, which is then gone on with; not with a header.
      variables: for a checkpoint's template; Gemma's own format has none.
    """

    add_header: bool = True
    stay_open: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)

    def with_variable(self, name: str, value: Any) -> "Ending":
        return replace(self, variables={**self.variables, name: value})


ANSWER: Final = Ending()


class Part(NamedTuple):
    """A stretch of a prompt. Only in `markup` are control tokens recognised: no message can bring any in."""

    text: str
    markup: bool = True


type Layout = Callable[[Sequence[Message], bool, Mapping[str, Any]], list[Part]]
"""Lays out messages (roles system, user, assistant) as a prompt; the flag asks for an answer's header, the last are
a template's variables."""


class ChatFormat:
    """Renders messages and encodes them.

    Roles are system, developer (the same), user and assistant (or model). A conversation begins with system
    messages, if any, and then the user's; a prompt for an answer does not end with the assistant's, unless
    it is to be gone on with. White space around each text is dropped, but for that at such an open end. Control
    tokens inside a text are plain text.

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
        ids = [
            token_id
            for text, markup in self._parts(messages, ending)
            for token_id in self._tokenizer.encode(text, control_tokens=markup)
            if token_id != bos_id
        ]
        return ids if bos_id is None else [bos_id, *ids]

    def render(self, messages: Sequence[Message], ending: Ending = ANSWER) -> str:
        """The prompt as people read it. It is not what `encode` encodes: that keeps texts and markup apart.

        Raises:
          ChatFormatError: the messages cannot become a prompt.
        """
        text = "".join(part.text for part in self._parts(messages, ending))
        return _bos_name(self._tokenizer) + text.removeprefix(_bos_name(self._tokenizer))

    def _parts(self, messages: Sequence[Message], ending: Ending) -> list[Part]:
        messages = _normalized(messages, ending)
        if not ending.stay_open:
            return self._layout(messages, ending.add_header, ending.variables)
        if not messages[-1].content:
            return self._layout(messages[:-1], True, ending.variables)
        return _open_end(self._layout(messages, False, ending.variables), messages[-1].content)


def load_chat_format(directory: Path | None, tokenizer: Tokenizer) -> ChatFormat:
    """The format of a checkpoint: its own template if it has one, else Gemma's turns.

    Where the tokenizer has no text, or no marks for Gemma's turns, the format refuses every conversation.

    Raises:
      CheckpointError: the checkpoint's template is broken.
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


def gemma_turns(messages: Sequence[Message], add_header: bool, _: Mapping[str, Any]) -> list[Part]:
    """Gemma's format, which has no system role: `fold` puts system texts into user turns.

    Each part is encoded on its own, so that no piece reaches across a mark or a header's end.
    """
    parts: list[Part] = []
    for message in fold(messages):
        role = "model" if message.role == "assistant" else "user"
        content = Part(message.content, markup=False)
        parts += (Part(START_OF_TURN), Part(role), Part("\n"), content, Part(END_OF_TURN), Part("\n"))
    if add_header:
        parts += (Part(START_OF_TURN), Part("model"), Part("\n"))
    return parts


def fold(messages: Sequence[Message]) -> list[Message]:
    """Makes user and assistant alternate, for formats without a system role.

    A system text counts as the user's, and neighbouring texts of one side are joined by an empty line. So the
    leading system texts come to stand in front of the first user text.
    """
    return [
        Message(role, "\n\n".join(message.content for message in group if message.content))
        for role, group in itertools.groupby(messages, key=_side)
    ]


class ChatTemplate:
    """A checkpoint's Jinja template, as a layout.

    The template sees placeholders instead of the texts, so that what it writes itself (markup) can be told
    from what it quotes; only an empty text is given as it is. It gets the messages unchanged; if it refuses
    them (no system role, roles must alternate) or loses a text, it gets them folded, and then both once more
    with each text as a list of one part, which some templates want. A text that it writes twice stands there
    twice; one that it leaves out or rewrites even then is an error, since nobody would notice otherwise.

    Attributes:
      takes_tools: whether it has the variable `tools`.

    Raises:
      jinja2.TemplateSyntaxError: the source is no template.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals |= {**variables, "raise_exception": _raise_exception}
        self.takes_tools = "tools" in jinja2.meta.find_undeclared_variables(environment.parse(source))
        self._template = environment.from_string(source)

    def __call__(self, messages: Sequence[Message], add_header: bool, variables: Mapping[str, Any]) -> list[Part]:
        errors = []
        for as_content in (str, _as_parts):
            for conversation in (messages, fold(messages)):
                try:
                    return self._parts(conversation, as_content, add_header, variables)
                except ChatFormatError as error:
                    errors.append(error)
        raise errors[1]  # of the folded messages, which most templates take

    def _parts(
        self,
        messages: Sequence[Message],
        as_content: Callable[[str], object],
        add_header: bool,
        variables: Mapping[str, Any],
    ) -> list[Part]:
        texts = {str(index): message.content for index, message in enumerate(messages) if message.content}
        quoted = [
            {"role": message.role, "content": as_content(_placeholder(index) if message.content else "")}
            for index, message in enumerate(messages)
        ]
        # `split` alternates between what stands outside the placeholders and the indices within.
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


# Private-use characters and digits: nothing that a template may trim, split at or change the case of.
_PLACEHOLDER: Final = re.compile("\ue0f0([0-9]+)\ue0f1")


def _placeholder(index: int) -> str:
    return f"\ue0f0{index}\ue0f1"


class _TextPart(dict[str, str]):
    """A part of a message, in OpenAI's form. A template that does not know parts must not write one as Python does."""

    def __repr__(self) -> str:
        raise ChatFormatError("the checkpoint's chat template takes a list of parts for a text")


def _as_parts(text: str) -> list[_TextPart]:
    return [_TextPart(type="text", text=text)]


def _raise_exception(message: str) -> Never:
    raise jinja2.TemplateError(message)


def _load_template(directory: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        source: str | None = _read_text(path)
    else:
        path = directory / "tokenizer_config.json"
        source = _default_template(path, read_tokenizer_config(directory).get("chat_template"))
    if source is None:
        return None
    try:
        return ChatTemplate(source, _template_variables(tokenizer))
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
    """tokenizer_config.json has no template, one, or a list of named ones."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        for entry in value:
            match entry:
                case {"name": "default", "template": str(source)}:
                    return source
    raise CheckpointError(f'{path}: chat_template must be a string, or a list with an entry named "default"')


def _template_variables(tokenizer: Tokenizer) -> dict[str, str]:
    eos_name = tokenizer.token_text(tokenizer.end_token_ids[0]) if tokenizer.end_token_ids else ""
    return {"bos_token": _bos_name(tokenizer), "eos_token": eos_name}


def _bos_name(tokenizer: Tokenizer) -> str:
    return "" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id)


def _open_end(parts: list[Part], text: str) -> list[Part]:
    """The parts up to the last message's text, without the markup that closes it."""
    last = max(position for position, part in enumerate(parts) if not part.markup)
    if not parts[last].text.endswith(text):  # folded, it may be the end of a longer one
        raise ChatFormatError("the checkpoint's chat template does not end with the last message")
    return parts[: last + 1]


def _normalized(messages: Sequence[Message], ending: Ending) -> list[Message]:
    """Trims texts and unifies roles (system, user, assistant); refuses what is no conversation."""
    normalized = [Message(_role(message.role), message.content.strip()) for message in messages]
    roles = [message.role for message in normalized if message.role != "system"]
    if not roles or roles[0] != "user":
        raise ChatFormatError("the first message, apart from system messages, must be from the user")
    is_answered = normalized[-1].role == "assistant"
    if ending.stay_open and ending.add_header:
        raise ChatFormatError("continue_final_message and add_generation_prompt exclude each other")
    if ending.stay_open and not is_answered:
        raise ChatFormatError("the last message must be the assistant's, as it is to be continued")
    if ending.stay_open:
        normalized[-1] = Message("assistant", messages[-1].content.lstrip())
    if ending.add_header and is_answered:
        raise ChatFormatError(
            "the last message must be from the user; to go on with an assistant's, set continue_final_message"
        )
    return normalized


def _role(role: str) -> str:
    try:
        return _ROLES[role]
    except KeyError:
        raise ChatFormatError(
            f"the role {role!r} is not supported; roles are system, developer, user, assistant and tool"
        ) from None


def _side(message: Message) -> str:
    return "assistant" if message.role == "assistant" else "user"


def _refusal(reason: str) -> Layout:
    def refuse(messages: Sequence[Message], add_header: bool, variables: Mapping[str, Any]) -> list[Part]:
        raise ChatFormatError(reason)

    return refuse


def _has_control_token(tokenizer: Tokenizer, name: str) -> bool:
    ids = tokenizer.encode(name)
    return len(ids) == 1 and tokenizer.is_control(ids[0])
