"""Schemas of the bodies of OpenAI's chat completions and completions."""

from typing import Final

from ..errors.request_errors import bad_value
from ..http.response_parts import RequestedReports
from ..schemas.body import Body, Fields
from ..schemas.generation_fields import ChatFields, CompletionFields


class StreamOptions(Fields):
    """`include_obfuscation` is accepted, and nothing is obfuscated."""

    include_usage: bool = False
    """Whether the last chunk of a stream has the counts of tokens."""

    continuous_usage_stats: bool = False
    """Whether each chunk has the counts of tokens so far."""

    include_obfuscation: bool = False
    """Accepted without effect: nothing is obfuscated."""


_NO_OPTIONS: Final = StreamOptions()


class StreamingFields(Body):
    """Fields about the form of the response."""

    stream: bool = False
    """Whether the response is a stream of server-sent events."""

    stream_options: StreamOptions | None = None
    """Options of the stream. They need `stream`."""

    return_timings: bool = False
    """Whether the response has the field `timings`, in milliseconds and under llama.cpp's names."""

    @property
    def reports(self) -> RequestedReports:
        """Reports that the request asks for."""
        stream = self.stream_options or _NO_OPTIONS
        return RequestedReports(stream.include_usage, stream.continuous_usage_stats, self.return_timings)


class TokenNameFields(Body):
    """Fields about the names of tokens."""

    return_tokens_as_token_ids: bool = False
    """Whether log-probabilities name a token by its id, such as `token_id:5`, rather than by its text."""


def check_stream_options(*, stream: bool, options: Fields | None) -> None:
    """Checks that only requests for a stream have stream options.

    Raises:
      ApiError: A request without a stream has options.
    """
    if options is not None and options.model_fields_set and not stream:
        raise bad_value("stream_options", "stream_options needs stream: true")


def check_stream(body: "CompletionBody | ChatBody") -> None:
    """Checks that the requested fields can be streamed.

    Raises:
      ApiError: A field cannot be streamed.
    """
    check_stream_options(stream=body.stream, options=body.stream_options)
    if body.prompt_logprobs is not None and body.stream:
        raise bad_value("prompt_logprobs", "prompt_logprobs cannot be streamed; use echo with logprobs instead")


class CompletionBody(CompletionFields, StreamingFields, TokenNameFields):
    """`POST /v1/completions`."""


class ChatBody(ChatFields, StreamingFields, TokenNameFields):
    """`POST /v1/chat/completions`."""

    store: bool = False
    """Accepted without effect: nothing is stored, and true is reported in `x-roost-warnings`."""
