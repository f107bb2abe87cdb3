"""`POST /v1/completions`: raw text or token ids, including scoring a prompt with `echo` and `logprobs`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from ..errors.request_errors import bad_value
from ..generation.admission import admission
from ..generation.delta import Delta
from ..generation.logprobs import (
    CompletionLogprobs,
    CompletionLogprobsBuilder,
    TokenNames,
    join_logprobs,
    prompt_logprobs,
    with_top,
)
from ..generation.prompts import Prompt
from ..generation.requests import completion
from ..generation.service import Service
from ..generation.spec import GenerationSpec
from ..http.openapi import streamable
from ..http.response_parts import Report, ResponseKind, choice_end
from ..http.routes import JsonRoute, ReadyService
from ..http.streaming import ResponseBuilder, respond
from ..text.served_model import ServedModel
from ..text.tokenizer import Tokenizer
from .response_schemas import Completion
from .schemas import CompletionBody, check_stream

router = APIRouter(route_class=JsonRoute)

_KIND: Final = ResponseKind("cmpl", "text_completion", "text_completion")


@router.post("/v1/completions", responses=streamable(Completion, Completion))
async def create_completion(body: CompletionBody, request: Request, service: ReadyService) -> Response:
    """Returns continuations of each prompt."""
    service.check_count(len(body.prompts), body.num_candidates)
    spec = await completion_spec(body, service)
    builder = CompletionResponseBuilder(body, service.model, spec.prompts)
    return await respond(service, request, spec, builder, stream=body.stream, report_warnings=body.return_warnings)


async def completion_spec(body: CompletionBody, service: Service) -> GenerationSpec:
    """Converts a body to a spec.

    Raises:
      ApiError: The body cannot be converted.
    """
    check_stream(body)
    if body.num_candidates > body.n and body.stream:
        raise bad_value("best_of", "best_of larger than n cannot be streamed: which is best is known at the end")
    return replace(await completion(body, service), holds_output=not body.stream)


class CompletionResponseBuilder(ResponseBuilder):
    """Builds completions and their chunks."""

    def __init__(self, body: CompletionBody, model: ServedModel, prompts: Sequence[Prompt]) -> None:
        num_choices = len(prompts) * body.num_candidates
        self._report = Report(_KIND, model, prompts, num_choices, body.reports)
        self.id = self._report.id
        self._body = body
        self._reports_tokens = body.logprobs is not None or body.return_token_ids
        self._choices = [
            ChoiceBuilder(body, model.tokenizer, prompt) for prompt in prompts for _ in range(body.num_candidates)
        ]

    def repeats_much(self, delta: Delta) -> bool:
        return admission.get().is_large and self._choices[delta.index].is_new

    def whole(self, choices: Sequence[Delta]) -> dict[str, Any]:
        kept = enumerate(most_likely(choices, self._body.n, self._body.num_candidates))
        built = [self._choices[each.index].build(replace(each, index=index)) for index, each in kept]
        return self._report.whole(built, choices)

    def order(self, choices: Sequence[Delta]) -> Sequence[int]:
        return [each.index for each in most_likely(choices, self._body.n, self._body.num_candidates)]

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        has_news = delta.finish_reason is not None or self._choices[delta.index].has_news(delta)
        return self._report.chunks(delta, [self._choice(delta)] if has_news else [])

    def text_event(self, index: int, text: str, num_tokens: int) -> bytes | None:
        if self._reports_tokens or not text or self._choices[index].is_new:
            return None
        return self._report.text_event(index, text, num_tokens, self._choice)

    def _choice(self, delta: Delta) -> dict[str, Any]:
        return self._choices[delta.index].build(delta)


def most_likely(choices: Sequence[Delta], kept: int, candidates: int) -> list[Delta]:
    """Returns each prompt's candidates with the highest mean log-probability of their tokens, best first.

    Args:
      choices: All candidates, prompt by prompt.
      kept: Number of candidates to return for each prompt.
      candidates: Number of candidates of each prompt. If all are kept, they stay in their order.
    """
    if kept == candidates:
        return list(choices)
    groups = [choices[start : start + candidates] for start in range(0, len(choices), candidates)]
    return [choice for group in groups for choice in sorted(group, key=_mean_logprob, reverse=True)[:kept]]


def _mean_logprob(choice: Delta) -> float:
    return sum(entry.logprob for entry in choice.logprobs) / max(len(choice.logprobs), 1)


class ChoiceBuilder:
    """Builds one choice. Fields about the prompt are part of the first delta."""

    def __init__(self, body: CompletionBody, tokenizer: Tokenizer, prompt: Prompt) -> None:
        self._tokenizer = tokenizer
        self._body = body
        self._prompt: Prompt | None = prompt
        self._logprobs = CompletionLogprobsBuilder(TokenNames(tokenizer, by_id=body.return_tokens_as_token_ids))
        self._reports_tokens = body.logprobs is not None or body.return_token_ids

    @property
    def is_new(self) -> bool:
        """Whether nothing has been built yet."""
        return self._prompt is not None

    def has_news(self, delta: Delta) -> bool:
        """Returns whether a delta has anything to report."""
        reports_prompt = self._prompt is not None and self._body.echo
        return bool(delta.text) or reports_prompt or (bool(delta.token_ids) and self._reports_tokens)

    def build(self, delta: Delta) -> dict[str, Any]:
        """Returns the choice's part of a chunk, or the whole choice."""
        prompt, self._prompt = self._prompt, None
        echo = prompt if self._body.echo else None
        choice = {
            "index": delta.index,
            "text": (echo.text(self._tokenizer) if echo else "") + delta.text,
            "logprobs": self._build_logprobs(echo, delta),
            **choice_end(delta, with_ids=self._body.return_token_ids),
        }
        if prompt is not None and self._body.return_token_ids:
            choice["prompt_token_ids"] = prompt.token_ids
        if prompt is not None and (num_top := self._body.prompt_logprobs) is not None:
            entries = delta.prompt_logprobs or ()
            choice["prompt_logprobs"] = prompt_logprobs(self._tokenizer, prompt.token_ids, entries, num_top)
        return choice

    def _build_logprobs(self, echo: Prompt | None, delta: Delta) -> CompletionLogprobs | None:
        num_top = self._body.logprobs
        if num_top is None:
            return None
        if echo is None:
            return self._logprobs.build(delta.token_ids, delta.logprobs)
        entries = [None if entry is None else with_top(entry, num_top) for entry in delta.prompt_logprobs or ()]
        prompt_part = self._logprobs.build(echo.token_ids, entries, echo.pieces(self._tokenizer))
        return join_logprobs(prompt_part, self._logprobs.build(delta.token_ids, delta.logprobs))
