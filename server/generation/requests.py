"""Converts the fields of completions and chats to a `GenerationSpec`, for HTTP and the Python API."""

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from ...engine import ParameterError, SamplingParams
from ..constraints.grammar_spec import OBJECT_SCHEMA, GrammarSpec, choice_spec, json_spec, lark_spec, regex_spec
from ..constraints.output_constraint import OutputConstraint, constraint, schema_spec, with_tools
from ..errors.request_errors import bad_value
from ..schemas.generation_fields import (
    MAX_BAD_WORD_CHARACTERS,
    NUMBERS,
    ChatFields,
    ChatMessage,
    CompletionFields,
    GenerationFields,
    SamplingFields,
    TemplateFields,
)
from ..schemas.output_formats import StructuredFields, StructuredOutputs, tool_options
from ..text.chat_format import Conversation, ConversationMessage, Ending
from ..text.served_model import ServedModel
from ..text.tokenizer import TextUnavailableError
from .admission import admission
from .prompts import Cut, Prompt
from .service import Service
from .spec import GenerationSpec, PromptCopies
from .state_store import StoredState

_DEFAULT_COMPLETION_TOKENS: Final = 16
"""Default of `max_tokens` in `/v1/completions` only; OpenAI's."""

_LISTS: Final = frozenset({"allowed_token_ids", "bad_words", "logit_bias", "logprob_token_ids", "stop_token_ids"})
"""Fields that hold tokens, which few requests have."""

_ANY: Final = StructuredOutputs.model_construct()
"""Outputs that are not constrained."""


async def chat(body: ChatFields, service: Service, *, holds_output: bool = True) -> GenerationSpec:
    """Returns the spec of the next message of a conversation.

    Args:
      holds_output: See `GenerationSpec`.

    Raises:
      ApiError: Fields contradict each other or do not fit the model.
    """

    def convert() -> tuple[Sequence[SamplingParams], OutputConstraint | None, Conversation]:
        params, text_constraint = chat_params(body, service.model), body_constraint(body)
        conversation = chat_conversation(body)
        tools = conversation.tools
        return params, text_constraint if tools is None else with_tools(text_constraint, tools), conversation

    own = admission.get()
    params, output_constraint, conversation = await own.run(convert) if own.is_large else convert()
    state = None if body.from_state is None else service.saved_state(body.from_state)
    prompt = await service.prompts.chat(conversation, state=state, cut=cut_of(body))
    return spec_of(
        body,
        [prompt],
        params,
        output_constraint,
        state=state,
        copies=PromptCopies(int(body.return_token_ids), body.prompt_logprobs),
        holds_output=holds_output,
        may_call=conversation.tools is not None and bool(conversation.tools.introduced),
    )


async def completion(body: CompletionFields, service: Service, *, holds_output: bool = True) -> GenerationSpec:
    """Returns the spec of continuations of each prompt.

    Args:
      holds_output: See `GenerationSpec`.

    Raises:
      ApiError: Fields contradict each other or do not fit the model.
    """

    def convert() -> tuple[Sequence[SamplingParams], OutputConstraint | None]:
        return completion_params(body, service.model), body_constraint(body)

    own = admission.get()
    params, output_constraint = await own.run(convert) if own.is_large else convert()
    state = None if body.from_state is None else service.saved_state(body.from_state)
    id_copies = body.num_candidates if body.return_token_ids else 0
    return spec_of(
        body,
        await completion_prompts(body, state, service),
        params,
        output_constraint,
        state=state,
        copies=PromptCopies(id_copies, body.prompt_logprobs, body.echo, body.logprobs),
        holds_output=holds_output,
    )


def spec_of(
    body: GenerationFields,
    prompts: Sequence[Prompt],
    params: Sequence[SamplingParams],
    output_constraint: OutputConstraint | None,
    *,
    state: StoredState | None,
    copies: PromptCopies,
    holds_output: bool,
    may_call: bool = False,
    sends_ids: bool = False,
) -> GenerationSpec:
    """Returns the spec of a body, with the fields that the three endpoints share.

    Args:
      params: Sampling parameters of the choices of each prompt.
    """
    return GenerationSpec(
        prompts,
        params,
        output_constraint,
        stop=[body.stop] if isinstance(body.stop, str) else body.stop or (),
        include_stop=body.include_stop_str_in_output,
        ignore_eos=body.ignore_eos,
        may_call=may_call,
        sends_ids=sends_ids,
        holds_output=holds_output,
        copies=copies,
        state=state,
        cache_salt=body.cache_salt,
        prediction="" if body.prediction is None else body.prediction.text,
        priority=body.priority,
        queue_timeout_s=body.queue_timeout,
        timeout_s=body.timeout,
    )


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
    content, calls = message.content, message.tool_calls or ()
    texts = content if content is None or isinstance(content, str) else tuple([part.text for part in content])
    if message.refusal is not None:  # it is the last part
        texts = (*((texts,) if isinstance(texts, str) else texts or ()), message.refusal)
    return ConversationMessage(message.role, texts, tuple([call.as_call() for call in calls]), message.tool_call_id)


async def completion_prompts(body: CompletionFields, state: StoredState | None, service: Service) -> Sequence[Prompt]:
    """Returns the prompts of a completion, each behind the tokens of the state that it continues.

    Raises:
      ApiError: A prompt cannot be encoded, or the prompts have too many tokens together.
    """
    add_bos = body.add_special_tokens and state is None
    return await service.prompts.completions(body.prompts, add_bos=add_bos, state=state, cut=cut_of(body))


def cut_of(body: GenerationFields) -> Cut:
    """Returns the maximum length of the prompts."""
    return Cut(body.truncate_prompt_tokens, body.truncation_side)


def chat_params(body: ChatFields, model: ServedModel) -> list[SamplingParams]:
    """Returns the sampling parameters for `n` choices, which differ only in their seeds.

    Raises:
      ApiError: Fields contradict each other or do not fit the model.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_value("top_logprobs", "top_logprobs needs logprobs: true")
    max_tokens = body.max_completion_tokens or body.max_tokens or model.defaults.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return choice_params(body, model, max_tokens, body.n, logprobs, body.prompt_logprobs)


def completion_params(body: CompletionFields, model: ServedModel) -> list[SamplingParams]:
    """Returns the parameters of each candidate of a prompt; see `chat_params`."""
    if body.num_candidates < body.n:
        raise bad_value("best_of", f"best_of must be at least n, which is {body.n}")
    max_tokens = _DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    compares_logprobs = body.num_candidates > body.n and body.logprobs is None
    counts = [body.prompt_logprobs, body.logprobs if body.echo else None]
    prompt_logprobs = max((count for count in counts if count is not None), default=None)
    logprobs = 0 if compares_logprobs else body.logprobs
    return choice_params(body, model, max_tokens, body.num_candidates, logprobs, prompt_logprobs)


def choice_params(
    body: GenerationFields,
    model: ServedModel,
    max_tokens: int | None,
    num_choices: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> list[SamplingParams]:
    """Returns the parameters of each choice; see `chat_params`."""
    if body.truncate_prompt_tokens == 0:
        raise bad_value("truncate_prompt_tokens", "truncate_prompt_tokens must be at least 1, or -1 for no limit")
    if body.logprob_token_ids and logprobs is None:
        raise bad_value("logprob_token_ids", "logprob_token_ids needs logprobs")
    lists = {} if _LISTS.isdisjoint(body.model_fields_set) else _token_lists(body, model)
    reports = {"logprobs": logprobs, "prompt_logprobs": prompt_logprobs}
    return sampling_params(body, model, max_tokens, num_choices, **reports, **lists)


def sampling_params(
    body: SamplingFields, model: ServedModel, max_tokens: int | None, num_choices: int = 1, **fields: Any
) -> list[SamplingParams]:
    """Returns the parameters of each choice of a prompt, which differ in their seeds.

    Args:
      body: Body of the request.
      model: Model with the checkpoint's defaults.
      max_tokens: Maximum number of tokens; None generates until the model stops.
      num_choices: Number of choices.
      fields: Further fields of `SamplingParams`.

    Raises:
      ApiError: Fields contradict each other or do not fit the model.
    """
    limits = [limit for limit in (max_tokens, model.max_tokens_limit) if limit is not None]
    max_tokens = min(limits, default=None)
    if body.ignore_eos and max_tokens is None:
        raise bad_value("ignore_eos", "ignore_eos needs a limit: set max_tokens")
    if max_tokens is not None and body.min_tokens > max_tokens:
        raise bad_value("min_tokens", f"min_tokens must be at most max_tokens, which is {max_tokens}")
    own = [name for name in NUMBERS if name in type(body).model_fields]  # unknown fields are attributes, too
    requested = {name: value for name in own if (value := getattr(body, name)) is not None}
    numbers = {**model.defaults.sampling, **requested}
    if numbers.get("top_p") == 0:  # clients mean the most likely token alone
        numbers |= {"temperature": 0.0, "top_p": 1.0}
    if numbers.get("top_k") == -1:  # vLLM's value for off
        numbers["top_k"] = 0
    seeds = [secrets.randbits(64) if body.seed is None else (body.seed + each) % 2**64 for each in range(num_choices)]
    try:
        params = SamplingParams(
            **numbers,
            seed=seeds[0],
            max_tokens=max_tokens,
            min_tokens=body.min_tokens,
            end_token_ids=() if body.ignore_eos else model.end_token_ids,
            **fields,
        )
    except ParameterError as error:  # of values that depend on each other, which no schema checks
        raise bad_value(error.field, str(error)) from None
    return [params, *[params.with_seed(seed) for seed in seeds[1:]]]


def _token_lists(body: GenerationFields, model: ServedModel) -> dict[str, Any]:
    """Returns the fields of `SamplingParams` that hold tokens, all within the vocabulary."""
    logit_bias, vocab_size = _logit_bias(body), model.tokenizer.vocab_size
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
    return {**lists, "logit_bias": logit_bias, "bad_words": _bad_words(body, model)}


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


def body_constraint(body: StructuredFields) -> OutputConstraint | None:
    """Returns the output constraint that the fields of a body request, of which it has at most one.

    Raises:
      ApiError: Several fields request one, or the constraint is invalid.
    """
    form, outputs, own = body.response_format, body.structured_outputs or _ANY, "structured_outputs"
    wanted = None if form is None else form.output_schema
    is_strict = form is not None and form.is_strict
    fields: list[tuple[str, Any, Callable[[Any], GrammarSpec]]] = [
        ("response_format", wanted, partial(schema_spec, "response_format", is_strict=is_strict)),
        (own, outputs.json_, partial(schema_spec, own)),
        (own, OBJECT_SCHEMA if outputs.json_object else None, json_spec),
        (own, outputs.regex, regex_spec),
        (own, outputs.choice, choice_spec),
        (own, outputs.grammar, lark_spec),
        ("regex", body.regex or None, regex_spec),
        ("grammar", body.grammar or None, lark_spec),
        ("json_schema", body.json_schema or None, partial(schema_spec, "json_schema")),
        ("ebnf", body.ebnf or None, lark_spec),
    ]
    found = [field for field in fields if field[1] is not None]
    if not found:
        return None
    (param, value, make), *others = found
    if others:
        raise bad_value(others[0][0], f"{param} and {others[0][0]} exclude each other")
    return constraint(param, partial(make, value))
