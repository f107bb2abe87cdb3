"""Converts the fields of completions and chats to a `GenerationSpec`, for HTTP and the Python API."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from ...engine import SamplingParams
from ..constraints.grammar import (
    OBJECT_SCHEMA,
    GrammarSpec,
    choice_spec,
    json_spec,
    lark_spec,
    regex_spec,
)
from ..constraints.output_constraint import OutputConstraint, constraint, json_constraint, with_tools
from ..errors.request_errors import bad_value
from ..schemas.generation_fields import (
    MAX_BAD_WORD_CHARACTERS,
    ChatFields,
    ChatMessage,
    CompletionFields,
    GenerationFields,
    TemplateFields,
)
from ..schemas.output_formats import Spelling, StructuredOutputs
from ..schemas.sampling_fields import sampling_params
from ..schemas.tools import tool_options
from ..text.chat_template import Ending
from ..text.conversation import Conversation, ConversationMessage
from ..text.served_model import ServedModel
from ..text.tokenizer import TextUnavailableError
from .admission import admission
from .prompts import Prompt
from .service import Service
from .spec import GenerationSpec, PromptCopies
from .state_store import StoredState

_DEFAULT_COMPLETION_TOKENS: Final = 16
"""Default of `max_tokens` in `/v1/completions` only; OpenAI's."""


def spec_of(body: GenerationFields, params: Sequence[SamplingParams]) -> GenerationSpec:
    """Returns the part of a request's spec that the three endpoints share, without prompts.

    Args:
      params: Sampling parameters of the choices of each prompt.

    Raises:
      ApiError: The output constraint is invalid.
    """
    return GenerationSpec(
        (),
        params,
        constraint_of(body.spellings),
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        include_stop=body.include_stop_str_in_output,
        ignore_eos=body.ignore_eos,
        cache_salt=body.cache_salt,
        prediction="" if body.prediction is None else body.prediction.text,
        priority=body.priority,
        queue_timeout_s=body.queue_timeout,
        timeout_s=body.timeout,
        limit_param=None if body.max_tokens is None else "max_tokens",
    )


def constraint_of(spellings: Sequence[Spelling]) -> OutputConstraint | None:
    """Returns the output constraint of a request, which has at most one.

    Raises:
      ApiError: Several fields request one, or the constraint is invalid.
    """
    if not spellings:
        return None
    (param, requested, is_strict), *others = spellings
    if others:
        raise bad_value(others[0].param, f"{param} and {others[0].param} exclude each other")
    kinds = list(_kinds(param, requested, is_strict=is_strict))
    if len(kinds) != 1:
        count = "only one" if kinds else "one"
        raise bad_value(param, f"{param} must have {count} of json, regex, choice, grammar and json_object")
    return constraint(param, kinds[0])


def _kinds(
    param: str, requested: StructuredOutputs, *, is_strict: bool
) -> Iterator[Callable[[], GrammarSpec | OutputConstraint]]:
    if requested.json_ is not None:
        yield partial(json_constraint, param, requested.json_, is_strict=is_strict)
    if requested.regex is not None:
        yield partial(regex_spec, requested.regex)
    if requested.choice is not None:
        yield partial(choice_spec, requested.choice)
    if requested.grammar is not None:
        yield partial(lark_spec, requested.grammar)
    if requested.json_object:
        yield partial(json_spec, OBJECT_SCHEMA)


async def completion(body: CompletionFields, service: Service) -> GenerationSpec:
    """Returns the spec of continuations of each prompt.

    Raises:
      ApiError: Fields contradict each other or do not fit the model.
    """
    spec = await admission.get().run(lambda: spec_of(body, completion_params(body, service.model)))
    state = service.saved_state(body.from_state)
    prompts = await completion_prompts(body, state, service)
    id_copies = body.num_candidates if body.return_token_ids else 0
    copies = PromptCopies(id_copies, body.prompt_logprobs, body.echo, body.logprobs)
    return replace(spec, prompts=prompts, state=state, copies=copies)


async def completion_prompts(body: CompletionFields, state: StoredState | None, service: Service) -> Sequence[Prompt]:
    """Returns the prompts of a completion, each behind the tokens of the state that it continues.

    Raises:
      ApiError: A prompt cannot be encoded, or the prompts have too many tokens together.
    """
    encoded = await service.prompts.completions(body.prompts, add_bos=body.add_special_tokens and state is None)
    limit, side = body.truncate_prompt_tokens, body.truncation_side
    return await service.prompts.after(state, [service.prompts.truncated(prompt, limit, side) for prompt in encoded])


async def chat(body: ChatFields, service: Service) -> GenerationSpec:
    """Returns the spec of the next message of a conversation.

    Raises:
      ApiError: Fields contradict each other or do not fit the model.
    """
    spec, conversation = await admission.get().run(lambda: _chat_conversion(body, service.model))
    state = service.saved_state(body.from_state)
    return replace(spec, prompts=await chat_prompts(body, conversation, state, service), state=state)


async def chat_prompts(
    body: ChatFields, conversation: Conversation, state: StoredState | None, service: Service
) -> Sequence[Prompt]:
    """Returns the prompt of a chat, after the tokens of the state that it continues.

    Raises:
      ApiError: The messages cannot be encoded as a prompt.
    """
    prompt = await service.prompts.chat(conversation, state=state)
    new = service.prompts.truncated(prompt, body.truncate_prompt_tokens, body.truncation_side)
    return await service.prompts.after(state, [new])


def _chat_conversion(body: ChatFields, model: ServedModel) -> tuple[GenerationSpec, Conversation]:
    """Returns the spec of a chat without its prompt, and the conversation that becomes the prompt.

    Raises:
      ApiError: Fields contradict each other or do not fit the model.
    """
    spec, conversation = spec_of(body, chat_params(body, model)), chat_conversation(body)
    spec = replace(spec, copies=PromptCopies(int(body.return_token_ids), body.prompt_logprobs))
    if body.max_completion_tokens is not None:
        spec = replace(spec, limit_param="max_completion_tokens")
    if (tools := conversation.tools) is not None:
        spec = replace(spec, constraint=with_tools(spec.constraint, tools), may_call=bool(tools.introduced))
    return spec, conversation


def chat_conversation(body: ChatFields) -> Conversation:
    """Returns the conversation of a chat."""
    return conversation_of(body, body.messages, parallel_calls=body.parallel_tool_calls)


def conversation_of(
    body: TemplateFields, messages: Sequence[ChatMessage], *, parallel_calls: bool = True
) -> Conversation:
    """Returns messages as a conversation, in the form that all APIs share.

    Args:
      body: Body with the fields that determine how messages become a prompt.
      messages: Messages of the body.
      parallel_calls: Whether a response may hold several calls.
    """
    default = not body.continue_final_message
    add_header = default if body.add_generation_prompt is None else body.add_generation_prompt
    ending = Ending(add_header, body.continue_final_message, body.chat_template_kwargs)
    has_tools = body.tools or body.tool_choice != "auto"
    tools = tool_options(body.tools, body.tool_choice, parallel=parallel_calls) if has_tools else None
    return Conversation([_conversation_message(message) for message in messages], ending, tools)


def _conversation_message(message: ChatMessage) -> ConversationMessage:
    calls = tuple(call.as_call() for call in message.tool_calls or ())
    return ConversationMessage(message.role, _content(message), calls, message.tool_call_id)


def _content(message: ChatMessage) -> str | tuple[str, ...] | None:
    """Returns the text of a message or its parts; a refusal is the last of them."""
    content, refusal = message.content, message.refusal
    if refusal is None:
        return tuple(part.text for part in content) if isinstance(content, list) else content
    texts = [content] if isinstance(content, str) else [part.text for part in content or ()]
    return (*texts, refusal)


def chat_params(body: ChatFields, model: ServedModel) -> list[SamplingParams]:
    """Returns the sampling parameters for `n` choices, which differ only in their seeds.

    Raises:
      ApiError: Fields contradict each other or do not fit the model.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_value("top_logprobs", "top_logprobs needs logprobs: true")
    max_tokens = body.max_completion_tokens or body.max_tokens or model.defaults.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return choice_params(body, model, max_tokens, logprobs, body.prompt_logprobs)


def completion_params(body: CompletionFields, model: ServedModel) -> list[SamplingParams]:
    """Returns the parameters of each candidate of a prompt; see `chat_params`."""
    if body.num_candidates < body.n:
        raise bad_value("best_of", f"best_of must be at least n, which is {body.n}")
    max_tokens = _DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    compares_logprobs = body.num_candidates > body.n and body.logprobs is None
    counts = [body.prompt_logprobs, body.logprobs if body.echo else None]
    prompt_logprobs = max((count for count in counts if count is not None), default=None)
    logprobs = 0 if compares_logprobs else body.logprobs
    return choice_params(body, model, max_tokens, logprobs, prompt_logprobs)


def choice_params(
    body: GenerationFields,
    model: ServedModel,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> list[SamplingParams]:
    """Returns the parameters of each choice; see `chat_params`."""
    if body.truncate_prompt_tokens == 0:
        raise bad_value("truncate_prompt_tokens", "truncate_prompt_tokens must be at least 1, or -1 for no limit")
    if body.logprob_token_ids and logprobs is None:
        raise bad_value("logprob_token_ids", "logprob_token_ids needs logprobs")
    return sampling_params(
        body,
        model,
        max_tokens,
        body.num_candidates,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        bad_words=_bad_words(body, model),
        **_token_lists(body, model.tokenizer.vocab_size),
    )


def _token_lists(body: GenerationFields, vocab_size: int) -> dict[str, Any]:
    """Returns the fields of `SamplingParams` that hold ids of the request, all within the vocabulary."""
    logit_bias = _logit_bias(body)
    allowed = None if body.allowed_token_ids is None else tuple(body.allowed_token_ids)
    lists = {
        "stop_token_ids": tuple(body.stop_token_ids),
        "allowed_token_ids": allowed,
        "logprob_token_ids": tuple(body.logprob_token_ids),
    }
    for name, ids in (*lists.items(), ("logit_bias", [token_id for token_id, _ in logit_bias])):
        if len(ids or ()) > vocab_size:
            raise bad_value(name, f"{name} must hold at most {vocab_size} ids, as many as the vocabulary has")
        if (highest := max(ids or (), default=0)) >= vocab_size:
            raise bad_value(name, f"{name}: the id {highest} is outside the vocabulary of {vocab_size} tokens")
    return {**lists, "logit_bias": logit_bias}


def _logit_bias(body: GenerationFields) -> tuple[tuple[int, float], ...]:
    """Returns pairs of id and bias. Keys of a JSON object are strings."""
    for key in body.logit_bias:
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise bad_value("logit_bias", f'logit_bias: the key {key[:60]!r} must be a token id, such as "42"')
    return tuple({int(key): bias for key, bias in body.logit_bias.items()}.items())


def _bad_words(body: GenerationFields, model: ServedModel) -> tuple[tuple[int, ...], ...]:
    """Returns the tokens of each bad word at the start of a text and after a space, which its first token then
    includes.
    """
    if sum(map(len, body.bad_words)) > MAX_BAD_WORD_CHARACTERS:
        raise bad_value("bad_words", f"bad_words must be at most {MAX_BAD_WORD_CHARACTERS} characters in total")
    try:
        encoded = [model.tokenizer.encode(start + word) for word in body.bad_words for start in ("", " ")]
    except TextUnavailableError as error:
        raise bad_value("bad_words", str(error)) from None
    return tuple(dict.fromkeys(tuple(ids) for ids in encoded if ids))
