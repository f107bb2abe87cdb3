"""A checkpoint's own Jinja template, as a layout."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Never

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ....engine.core.errors import CheckpointError
from ..tokenizer import Tokenizer
from ..tokenizer_loading import read_tokenizer_config
from .layout import Ending, Part, lay_out
from .turns import ChatFormatError, Message, fold, fold_after_system, unfolded

type Fold = Callable[[Sequence[Message]], list[Message]]


class _Form(NamedTuple):
    """How a template gets a conversation."""

    as_content: Callable[[str], object]
    fold: Fold


class _Order(NamedTuple):
    """An order of roles that a template may take, and the conversations that show that it does."""

    fold: Fold
    probes: Sequence[Sequence[str]]


def _roles(initials: str) -> Sequence[str]:
    return [{"s": "system", "u": "user", "a": "assistant"}[initial] for initial in initials]


_ORDERS: Final = (
    # Each role comes first, and behind each role. Only a request shows whether an answer may follow an assistant's.
    _Order(unfolded, [_roles("ssuuaasaus"), _roles("uuaasaussu"), _roles("aasaussuuau")]),
    _Order(fold_after_system, [_roles("suau")]),
    _Order(fold, [_roles("u")]),
)
"""From the least folded to the most."""


class ChatTemplate:
    """A checkpoint's Jinja template, as a layout.

    The template sees placeholders instead of the texts, so that what it writes itself (markup) can be told
    from what it quotes; only an empty text is given as it is. A text that it writes twice stands there
    twice; one that it leaves out or rewrites is an error, since nobody would notice otherwise.

    Probes decide once, when the template is loaded, which order of roles it takes: any order, alternating turns
    behind a system message, or alternating turns only. From then on every conversation comes in that form, so that
    a prompt neither changes its beginning as it grows nor depends on where a check of the template happens to look.
    Only a conversation that is refused in this form is folded further. The probes also decide whether each text
    is given as a string or as a list of one part.

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
        self._forms = self._usable_forms()

    def __call__(self, messages: Sequence[Message], ending: Ending) -> list[Part]:
        refusals: dict[Fold, ChatFormatError] = {}
        for form in self._forms:
            write = partial(self._write, form, ending.variables)
            try:
                return lay_out(form.fold(messages), ending, write)
            except ChatFormatError as error:
                refusals.setdefault(form.fold, error)
        raise refusals[fold]

    def _usable_forms(self) -> Sequence[_Form]:
        """The form for all conversations, then those that fold further."""
        for as_content in (str, _as_parts):
            forms = [_Form(as_content, order.fold) for order in _ORDERS]
            for position, order in enumerate(_ORDERS):
                if all(self._takes(forms[position], probe) for probe in order.probes):
                    return forms[position:]
        return [_Form(str, fold), _Form(_as_parts, fold)]  # it may want a variable that only requests bring

    def _takes(self, form: _Form, roles: Sequence[str]) -> bool:
        """Whether it writes messages of these roles, and leaves each where it is."""
        probe = form.fold([Message(role, str(position)) for position, role in enumerate(roles)])
        try:
            parts = self._write(form, {}, probe, True)
        except ChatFormatError:
            return False
        texts = dict.fromkeys(part.text for part in parts if not part.markup)
        return list(texts) == [message.content for message in probe]

    def _write(
        self, form: _Form, variables: Mapping[str, Any], messages: Sequence[Message], add_header: bool
    ) -> list[Part]:
        write = partial(self._parts, messages, form.as_content, variables=variables)
        parts = write(add_header)
        if add_header and messages and messages[-1].role == "assistant" and parts == write(False):
            raise ChatFormatError(
                "the checkpoint's chat template begins no answer behind an assistant's message: "
                "let a user's message follow, or set continue_final_message"
            )
        return parts

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


def load_template(directory: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The checkpoint's template, if it brings one.

    Raises:
      CheckpointError: The template is broken.
    """
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
    return {"bos_token": bos_name(tokenizer), "eos_token": eos_name}


def bos_name(tokenizer: Tokenizer) -> str:
    """The text of the BOS token; empty where there is none."""
    return "" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id)
