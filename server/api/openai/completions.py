"""`POST /v1/completions`: raw text or token ids, also for scoring a prompt with `echo` and `logprobs`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from ...generation.delta import Delta
from ...generation.output_constraint import wish_of
from ...generation.prompts import Prompt
from ...generation.service import ReadyService
from ...tenancy.memory import is_large
from ..common.json_route import JsonRoute
from ..common.logprobs import CompletionLogprobs, CompletionLogprobsWriter, cut, join_logprobs, prompt_logprobs
from ..common.openapi import STREAMABLE
from ..common.responding import AnswerWriter, Envelope, UsageReport, choice_end, total_usage
from ..common.sampling import completion_params
from ..common.timings import TimingReport
from .schemas import CompletionBody

router = APIRouter(route_class=JsonRoute)

_OBJECT: Final = "text_completion"


@router.post("/v1/completions", responses=STREAMABLE)
async def create_completion(body: CompletionBody, request: Request, service: ReadyService) -> Response:
    """What may come after each prompt."""
    service.check(body)
    service.check_count(len(body.prompts), body.num_candidates)
    params, wish = await service.prepare(lambda: (completion_params(body, service.model), wish_of(body)))
    begun = service.begun(body.from_state)
    encoded = await service.prompts.completions(body.prompts, add_bos=body.add_special_tokens and begun is None)
    prompts = [service.prompts.truncated(prompt, body) for prompt in encoded]
    if begun is not None:
        prompts = await service.prompts.after(begun.state, prompts)
    envelope = Envelope.new("cmpl", body, service.model)
    choices = await service.choices(body, prompts, params, wish, begun, receive=request.receive)
    writer = CompletionWriter(envelope, body, prompts)
    return await service.respond(
        request, envelope.id, choices, writer, stream=body.stream, report_warnings=body.return_warnings
    )


class CompletionWriter(AnswerWriter):
    def __init__(self, envelope: Envelope, body: CompletionBody, prompts: Sequence[Prompt]) -> None:
        self._envelope = envelope
        self._body = body
        self._prompts = prompts
        self._usage = UsageReport(body, prompts)
        self._timings = TimingReport(body, prompts, len(prompts) * body.num_candidates)
        self._choices = [ChoiceWriter(envelope, body, prompt) for prompt in prompts for _ in range(body.num_candidates)]

    def repeats_much(self, delta: Delta) -> bool:
        return is_large() and self._choices[delta.index].is_new

    def whole(self, choices: Sequence[Delta]) -> dict[str, Any]:
        kept = enumerate(likeliest(choices, self._body.n, self._body.num_candidates))
        answer = self._envelope.wrap(
            _OBJECT, [self._choices[each.index].write(replace(each, index=index)) for index, each in kept]
        )
        return {**answer, "usage": total_usage(self._prompts, choices), **self._timings.whole(choices)}

    def order(self, choices: Sequence[Delta]) -> Sequence[int]:
        return [each.index for each in likeliest(choices, self._body.n, self._body.num_candidates)]

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        self._usage.count(delta)
        self._timings.count(delta)
        choice = self._choices[delta.index]
        if delta.finish_reason is not None or choice.has_news(delta):
            report = {**self._usage.fields(), **self._timings.fields()}
            yield {**self._envelope.wrap(_OBJECT, [choice.write(delta)]), **report}

    def closing(self) -> Iterator[dict[str, Any]]:
        if (usage := self._usage.last_fields()) is not None:
            yield {**self._envelope.wrap(_OBJECT, []), **usage}


def likeliest(choices: Sequence[Delta], kept: int, candidates: int) -> list[Delta]:
    """Of every prompt's candidates, those with the highest mean log-probability of their tokens, best first.

    Args:
      choices: prompt by prompt.
      kept: how many of each prompt's.
      candidates: how many each prompt has; where these are all kept, they stay in their order.
    """
    if kept == candidates:
        return list(choices)
    groups = [choices[start : start + candidates] for start in range(0, len(choices), candidates)]
    return [choice for group in groups for choice in sorted(group, key=_mean_logprob, reverse=True)[:kept]]


def _mean_logprob(choice: Delta) -> float:
    return sum(entry.logprob for entry in choice.logprobs) / max(len(choice.logprobs), 1)


class ChoiceWriter:
    """Writes one choice; what is to be said of its prompt comes with the first delta."""

    def __init__(self, envelope: Envelope, body: CompletionBody, prompt: Prompt) -> None:
        self._tokenizer = envelope.model.tokenizer
        self._body = body
        self._prompt: Prompt | None = prompt
        self._logprobs = CompletionLogprobsWriter(self._tokenizer)
        self._tells_tokens = body.logprobs is not None or body.return_token_ids

    @property
    def is_new(self) -> bool:
        """Whether nothing has been written."""
        return self._prompt is not None

    def has_news(self, delta: Delta) -> bool:
        tells_prompt = self._prompt is not None and self._body.echo
        return bool(delta.text) or tells_prompt or (bool(delta.token_ids) and self._tells_tokens)

    def write(self, delta: Delta) -> dict[str, Any]:
        prompt, self._prompt = self._prompt, None
        echo = prompt if self._body.echo else None
        choice = {
            "index": delta.index,
            "text": (echo.text(self._tokenizer) if echo else "") + delta.text,
            "logprobs": self._write_logprobs(echo, delta),
            **choice_end(self._body, delta),
        }
        if prompt is not None and self._body.return_token_ids:
            choice["prompt_token_ids"] = prompt.token_ids
        if prompt is not None and (num_top := self._body.prompt_logprobs) is not None:
            entries = delta.prompt_logprobs or ()
            choice["prompt_logprobs"] = prompt_logprobs(self._tokenizer, prompt.token_ids, entries, num_top)
        return choice

    def _write_logprobs(self, echo: Prompt | None, delta: Delta) -> CompletionLogprobs | None:
        num_top = self._body.logprobs
        if num_top is None:
            return None
        if echo is None:
            return self._logprobs.write(delta.token_ids, delta.logprobs)
        entries = [None if entry is None else cut(entry, num_top) for entry in delta.prompt_logprobs or ()]
        of_prompt = self._logprobs.write(echo.token_ids, entries, echo.pieces(self._tokenizer))
        return join_logprobs(of_prompt, self._logprobs.write(delta.token_ids, delta.logprobs))
