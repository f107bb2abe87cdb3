"""`POST /generate`: token ids in, token ids out, and nothing of text on the way."""

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from ...generation.delta import Delta
from ...generation.output_constraint import wish_of
from ...generation.prompts import ID_BYTES, Prompt
from ...generation.service import ReadyService
from ...tenancy.memory import is_large, keep
from ..common.json_route import JsonRoute
from ..common.logprobs import token_logprobs
from ..common.openapi import STREAMABLE
from ..common.responding import AnswerWriter, Envelope, UsageReport, choice_end, total_usage
from ..common.sampling import generate_params
from ..common.timings import TimingReport
from ..openai.schemas import GenerateBody

router = APIRouter(route_class=JsonRoute)


@router.post("/generate", responses=STREAMABLE)
async def generate(body: GenerateBody, request: Request, service: ReadyService) -> Response:
    """What may come after these tokens."""
    service.check(body)
    params, wish = await service.prepare(lambda: (generate_params(body, service.model), wish_of(body)))
    encoded = await service.prepare(lambda: service.prompts.token_ids(body.token_ids, param="token_ids"))
    prompt = service.prompts.truncated(encoded, body)
    begun = service.begun(body.from_state)
    keep(ID_BYTES * len(prompt.token_ids))
    if begun is not None:
        (prompt,) = await service.prompts.after(begun.state, [prompt])
    envelope = Envelope.new("gen", body, service.model)
    choices = await service.choices(body, [prompt], params, wish, begun, receive=request.receive)
    writer = TokensWriter(envelope, body, prompt)
    return await service.respond(
        request, envelope.id, choices, writer, stream=body.stream, report_warnings=body.return_warnings
    )


class TokensWriter(AnswerWriter):
    """Whole answers and chunks have one shape; what is to be said of the prompt comes with a choice's first delta."""

    def __init__(self, envelope: Envelope, body: GenerateBody, prompt: Prompt) -> None:
        self._envelope = envelope
        self._body = body
        self._prompt = prompt
        self._usage = UsageReport(body, [prompt])
        self._timings = TimingReport(body, [prompt], body.n)

    def whole(self, choices: Sequence[Delta]) -> dict[str, Any]:
        answer = self._envelope.wrap("tokens", [self._choice(choice) for choice in choices])
        return {**answer, "usage": total_usage([self._prompt], choices), **self._timings.whole(choices)}

    def repeats_much(self, delta: Delta) -> bool:
        return delta.prompt_logprobs is not None and is_large()

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        self._usage.count(delta)
        self._timings.count(delta)
        report = {**self._usage.fields(), **self._timings.fields()}
        yield {**self._envelope.wrap("tokens.chunk", [self._choice(delta)]), **report}

    def closing(self) -> Iterator[dict[str, Any]]:
        if (usage := self._usage.last_fields()) is not None:
            yield {**self._envelope.wrap("tokens.chunk", []), **usage}

    def _choice(self, delta: Delta) -> dict[str, Any]:
        asked, asked_of_prompt = self._body.logprobs is not None, delta.prompt_logprobs is not None
        return {
            "index": delta.index,
            **choice_end(self._body, delta),
            "token_ids": delta.token_ids,
            "logprobs": token_logprobs(delta.logprobs) if asked else None,
            **({"prompt_logprobs": token_logprobs(delta.prompt_logprobs or ())} if asked_of_prompt else {}),
        }
