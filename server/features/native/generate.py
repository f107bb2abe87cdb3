"""`/generate`: token ids in, token ids out, without any text; and `/abort_request`."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, NotRequired, TypedDict

from fastapi import APIRouter, Request, Response
from pydantic import Field, model_validator

from ....engine import SamplingParams
from ...errors import kinds
from ...errors.request_errors import ApiError
from ...generation.admission import admission
from ...generation.delta import Delta
from ...generation.logprobs import IdLogprobs, token_logprobs
from ...generation.prompts import Prompt
from ...generation.requests import body_constraint, choice_params, cut_of, spec_of
from ...generation.service import Service
from ...generation.spec import GenerationSpec, PromptCopies
from ...http.responses import respond
from ...http.routes import AnyService, JsonRoute, ReadyService, described, streamable
from ...openai.completions import ChoicesBuilder, StreamingFields, check_stream_options, choice_end
from ...openai.response_schemas import ChoiceEnd, ReportFields, Usage
from ...schemas.body import Fields, TokenIds, TopLogprobs
from ...schemas.generation_fields import GenerationFields
from ...text.served_model import ServedModel

router = APIRouter(route_class=JsonRoute)


_FOREIGN_PROMPTS: Final = {"inputs": "TGI", "text": "SGLang", "input_ids": "SGLang", "prompt": "vLLM"}
"""Fields with the prompt of `/generate` in other servers, and the servers."""


class GenerateBody(GenerationFields, StreamingFields):
    """`POST /generate`."""

    token_ids: Annotated[TokenIds, Field(min_length=1)]
    """Token ids of the prompt, to which nothing is added."""

    logprobs: TopLogprobs | None = None
    """Number of alternatives to report for each token; 0 reports only the token itself, the default nothing."""

    from_state: str | None = None
    """Id of a saved state that the prompt continues."""

    @model_validator(mode="before")
    @classmethod
    def _is_of_roost(cls, data: Any) -> Any:
        """Refuses bodies of other servers' `/generate`, as a URL that Roost does not have."""
        prompt = next((name for name in _FOREIGN_PROMPTS if name in data), None) if isinstance(data, dict) else None
        if prompt is not None and "token_ids" not in data:
            server = _FOREIGN_PROMPTS[prompt]
            instead = "send text as prompt to /v1/completions, and token ids as token_ids to /generate"
            raise ApiError(kinds.NO_SUCH_URL, f"POST /generate takes no {prompt}, as {server}'s does: {instead}")
        return data


class TokensChoice(ChoiceEnd):
    """A choice of `/generate`, or a part of one in a stream."""

    index: int
    logprobs: IdLogprobs | None
    prompt_logprobs: NotRequired[IdLogprobs]


class Tokens(ReportFields):
    """Response of `/generate`."""

    object: Literal["tokens"]
    choices: list[TokensChoice]
    usage: Usage


class TokensChunk(ReportFields):
    """Event of a streamed response of `/generate`."""

    object: Literal["tokens.chunk"]
    choices: list[TokensChoice]
    usage: NotRequired[Usage | None]


@router.post("/generate", responses=streamable(Tokens, TokensChunk))
async def generate(body: GenerateBody, request: Request, service: ReadyService) -> Response:
    """Returns continuations of the token ids."""
    spec = await generate_spec(body, service)
    builder = TokensResponseBuilder(body, service.model, spec.prompts[0])
    return await respond(service, request, spec, builder, stream=body.stream)


async def generate_spec(body: GenerateBody, service: Service) -> GenerationSpec:
    """Converts a body to a spec.

    Raises:
      ApiError: The body cannot be converted.
    """
    check_stream_options(stream=body.stream, options=body.stream_options)
    params, output_constraint = await admission.get().run(lambda: (_params(body, service.model), body_constraint(body)))
    state = service.saved_state(body.from_state)
    prompts = await service.prompts.completions(
        [body.token_ids], add_bos=False, param="token_ids", state=state, cut=cut_of(body)
    )
    copies = PromptCopies(body.n if body.return_token_ids else 0, body.prompt_logprobs)
    holds_output = not body.stream
    return spec_of(
        body, prompts, params, output_constraint, state=state, copies=copies, holds_output=holds_output, sends_ids=True
    )


def _params(body: GenerateBody, model: ServedModel) -> list[SamplingParams]:
    max_tokens = model.defaults.max_tokens if body.max_tokens is None else body.max_tokens
    return choice_params(body, model, max_tokens, body.n, body.logprobs, body.prompt_logprobs)


class TokensResponseBuilder(ChoicesBuilder):
    """Builds responses of token ids. Whole responses and chunks have one shape."""

    id_prefix, whole_object, chunk_object = "gen", "tokens", "tokens.chunk"

    def __init__(self, body: GenerateBody, model: ServedModel, prompt: Prompt) -> None:
        super().__init__(body, model, [prompt], body.n)
        self._reports_logprobs = body.logprobs is not None

    def repeats_prompt(self, delta: Delta) -> bool:
        return delta.prompt_logprobs is not None

    def whole_choices(self, choices: Sequence[Delta]) -> list[dict[str, Any]]:
        return [part for choice in choices for part in self.parts(choice)]

    def parts(self, delta: Delta) -> Sequence[dict[str, Any]]:
        part = {
            "index": delta.index,
            **choice_end(delta, None),
            "token_ids": delta.token_ids,
            "logprobs": token_logprobs(delta.logprobs) if self._reports_logprobs else None,
        }
        if delta.prompt_logprobs is not None:
            part["prompt_logprobs"] = token_logprobs(delta.prompt_logprobs)
        return [part]


class AbortBody(Fields):
    """`POST /abort_request`."""

    request_id: Annotated[str, Field(min_length=1)]
    """Id of the response to end, or the request's `x-request-id`."""


@described
class AbortedRequests(TypedDict):
    """Number of choices that an abort has ended."""

    aborted: int
    """Number of choices that were still running."""


@router.post("/abort_request")
async def abort_request(body: AbortBody, service: AnyService) -> AbortedRequests:
    """Aborts all choices of a request, by the response's id or its `x-request-id`, and returns how many were running.

    An unknown id, or the id of a request that has ended, is not an error.
    """
    return AbortedRequests(aborted=service.tracked.abort(body.request_id))
