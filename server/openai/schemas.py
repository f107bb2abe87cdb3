"""Schemas of the bodies of OpenAI's chat completions and completions."""

from ..errors.request_errors import bad_value
from ..http.response_parts import ReportOptions
from ..schemas.base import Body, Fields
from ..schemas.generation_fields import ChatFields, CompletionFields


class StreamOptions(Fields):
    """`include_obfuscation` is accepted, and nothing is obfuscated."""

    include_usage: bool = False
    """Whether the last chunk of a stream has the counts of tokens."""

    continuous_usage_stats: bool = False
    """Whether each chunk has the counts of tokens so far."""

    include_obfuscation: bool = False
    """Accepted without effect: nothing is obfuscated."""


class StreamingFields(Body):
    """Fields about the form of the response."""

    stream: bool = False
    """Whether the response is a stream of server-sent events."""

    stream_options: StreamOptions | None = None
    """Options of the stream. They have no effect without `stream`."""

    return_timings: bool = False
    """Whether the response has the field `timings`, in milliseconds and under llama.cpp's names."""

    @property
    def reports(self) -> ReportOptions:
        """Reports that the request asks for."""
        stream = self.stream_options or StreamOptions()
        return ReportOptions(stream.include_usage, stream.continuous_usage_stats, self.return_timings)


def check_stream(body: "CompletionBody | ChatBody") -> None:
    """Checks that a stream can have what is requested.

    Raises:
      ApiError: It cannot.
    """
    if body.prompt_logprobs is not None and body.stream:
        raise bad_value("prompt_logprobs", "prompt_logprobs cannot be streamed, but for those of echo with logprobs")


class CompletionBody(CompletionFields, StreamingFields):
    """`POST /v1/completions`."""


class ChatBody(ChatFields, StreamingFields):
    """`POST /v1/chat/completions`."""
