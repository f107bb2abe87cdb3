"""Prompts as token ids and as text, without a generation: `/tokenize`, `/detokenize`, `/apply-template` and more."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypedDict

from fastapi import APIRouter, Response

from ...errors.request_errors import bad_value
from ...generation.admission import admission
from ...generation.prompts import Prompt
from ...generation.requests import chat_conversation, completion_prompts, conversation_of, cut_of
from ...generation.service import Service
from ...generation.spec import text_response_bytes
from ...http.responses import json_response, made_json_response
from ...http.routes import AnyService, JsonRoute, described, success
from ...openai.completions import ChatBody, CompletionBody
from ...schemas.body import Body, TokenIds
from ...schemas.generation_fields import Messages, TemplateFields

router = APIRouter(route_class=JsonRoute)


class TokenizeBody(TemplateFields):
    """`POST /tokenize`, with either `prompt` or `messages`."""

    prompt: str | None = None
    """Text to tokenize. A request has either this or `messages`."""

    messages: Messages | None = None
    """Messages of a chat, whose prompt is tokenized."""

    add_special_tokens: bool = True
    """Whether a BOS is put in front of `prompt`."""


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    tokens: TokenIds
    """Token ids to turn into text."""


@described
class TokenizedPrompt(TypedDict):
    """Response of `/tokenize`. `max_model_len` is null since nothing limits the length."""

    tokens: list[int]
    """Token ids."""

    count: int
    """Number of token ids."""

    max_model_len: None
    """Always null, since nothing limits the length."""


@described
class DetokenizedPrompt(TypedDict):
    """Response of `/detokenize`."""

    prompt: str
    """Text of the token ids."""


@described
class TokenizerInfo(TypedDict):
    """Response of `/tokenizer_info`."""

    tokenizer_class: str | None
    """Class that Hugging Face's libraries use for this tokenizer; null if there is none."""

    vocab_size: int
    """Number of token ids."""

    bos_token: str | None
    """Text of the token in front of each prompt."""

    eos_token: str | None
    """Text of the token that ends an output."""

    chat_template: None
    """Always null: `/apply-template` renders prompts."""


@described
class RenderedPrompt(TypedDict):
    """A prompt as text and as token ids."""

    prompt: str
    """Text of the prompt."""

    token_ids: list[int]
    """Token ids of the prompt."""

    count: int
    """Number of token ids."""


@router.post("/tokenize", responses=success(TokenizedPrompt))
async def tokenize(body: TokenizeBody, service: AnyService) -> Response:
    """Returns the token ids of a text or a chat."""
    token_ids = (await _encode(body, service)).token_ids
    return await made_json_response(lambda: {"tokens": token_ids, "count": len(token_ids), "max_model_len": None})


@router.post("/detokenize", responses=success(DetokenizedPrompt))
async def detokenize(body: DetokenizeBody, service: AnyService) -> Response:
    """Returns the text of token ids: control tokens are spelled out, except for a leading BOS."""
    tokenizer = service.model.tokenizer
    if not tokenizer.has_text:
        raise bad_value("tokens", "this checkpoint has no tokenizer, so its tokens have no text")
    if not body.tokens:
        return json_response({"prompt": ""})
    await admission.get().keep(text_response_bytes(body.tokens, tokenizer))

    def detokenized() -> dict[str, str]:
        token_ids = service.prompts.token_ids(body.tokens, param="tokens").token_ids
        prompt = Prompt(token_ids, from_text=True, adds_bos=token_ids[0] == tokenizer.bos_id)
        return {"prompt": prompt.text(tokenizer)}

    return await made_json_response(detokenized)


@router.get("/tokenizer_info")
async def tokenizer_info(service: AnyService) -> TokenizerInfo:
    """Returns the facts that evaluation harnesses need to work without a tokenizer."""
    tokenizer = service.model.tokenizer
    ends = tokenizer.end_token_ids
    return {
        "tokenizer_class": service.model.tokenizer_class,
        "vocab_size": tokenizer.vocab_size,
        "bos_token": None if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id),
        "eos_token": tokenizer.token_text(ends[0]) if ends else None,
        "chat_template": None,
    }


async def _encode(body: TokenizeBody, service: Service) -> Prompt:
    if (body.prompt is None) == (body.messages is None):
        raise bad_value("prompt", "send either prompt or messages")
    if body.messages is not None:
        conversation = await admission.get().run(partial(conversation_of, body, body.messages))
        return await service.prompts.chat(conversation)
    assert body.prompt is not None
    return (await service.prompts.completions([body.prompt], add_bos=body.add_special_tokens))[0]


@router.post("/v1/chat/completions/render", responses=success(RenderedPrompt))
@router.post("/apply-template", responses=success(RenderedPrompt))
async def render_chat(body: ChatBody, service: AnyService) -> Response:
    """Returns the prompt of a chat. The paths are vLLM's and llama.cpp's."""
    conversation = await admission.get().run(partial(chat_conversation, body))
    state = service.saved_state(body.from_state)
    prompt = await service.prompts.chat(conversation, state=state, cut=cut_of(body))
    return await _rendered_response(service, lambda: _rendered(service, prompt), [prompt])


@router.post("/v1/completions/render", responses=success(list[RenderedPrompt]))
async def render_completions(body: CompletionBody, service: AnyService) -> Response:
    """Returns the prompts of a completion, in their order."""
    service.check_count(len(body.prompts))
    prompts = await completion_prompts(body, service.saved_state(body.from_state), service)
    return await _rendered_response(service, lambda: [_rendered(service, prompt) for prompt in prompts], prompts)


async def _rendered_response(service: Service, make: Callable[[], Any], prompts: Sequence[Prompt]) -> Response:
    await admission.get().keep(
        sum(text_response_bytes(prompt.token_ids, service.model.tokenizer) for prompt in prompts)
    )
    return await made_json_response(make)


def _rendered(service: Service, prompt: Prompt) -> RenderedPrompt:
    """Returns a prompt as text and ids. Encoding the text may give other ids: it mixes markup with messages."""
    tokenizer = service.model.tokenizer
    token_ids = list(prompt.token_ids)
    return RenderedPrompt(prompt=prompt.text(tokenizer), token_ids=token_ids, count=len(token_ids))
