"""From the engine's outputs of one choice to deltas: text, tool calls, and the end of the choice."""

from dataclasses import replace

from ...engine import FinishReason, TokenOutput
from ..text.detokenizer import Detokenizer
from ..text.tokenizer import Tokenizer
from .choices import Choice
from .delta import Delta
from .tools import CallReader


class ChoiceDecoder:
    """Decodes the outputs of a choice, in order."""

    def __init__(self, choice: Choice, tokenizer: Tokenizer) -> None:
        self._choice = choice
        self._detokenizer = Detokenizer(tokenizer, choice.stop, include_stop=choice.include_stop)
        self._calls = CallReader() if choice.may_call else None
        self._num_tokens = 0
        self._num_sent = 0

    def decode(self, output: TokenOutput) -> Delta:
        """Returns the delta of an output. It has a finish reason if a stop string is complete, too."""
        delta = self._detokenize(output)
        self._num_tokens += len(delta.token_ids)
        if self._choice.sends_ids:
            delta.num_sent = self._num_tokens
        if self._calls is not None:
            delta = self._parse_calls(self._calls, delta)
        self._num_sent = delta.num_sent
        return delta

    def _detokenize(self, output: TokenOutput) -> Delta:
        choice, detokenizer = self._choice, self._detokenizer
        finish_reason: FinishReason | None = output.finish_reason
        stop_reason: int | str | None = output.stop_reason
        hides_last = finish_reason is FinishReason.STOP and not choice.include_stop
        text, num_taken = self._text(output.token_ids[:-1] if hides_last else output.token_ids, len(output.token_ids))
        if finish_reason is not None:
            text += detokenizer.finish()
        if detokenizer.stop_string is not None:
            finish_reason, stop_reason = FinishReason.STOP, detokenizer.stop_string
        return Delta(
            index=choice.index,
            text=text,
            token_ids=output.token_ids[:num_taken],
            logprobs=(output.logprobs or ())[:num_taken],
            prompt_logprobs=output.prompt_logprobs,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            num_cached=output.num_cached if choice.fork_of is None else 0,
            num_sent=detokenizer.num_sent + (hides_last and detokenizer.stop_string is None),
        )

    def _text(self, visible: tuple[int, ...], num_tokens: int) -> tuple[str, int]:
        """Returns the text of an output's visible tokens, and how many of its tokens belong to the choice.

        With stop strings, tokens are taken one by one, so that tokens behind a stop string don't count.
        """
        if not self._choice.stop:
            return self._detokenizer.push(visible), num_tokens
        text, num_taken = "", 0
        while num_taken < num_tokens and self._detokenizer.stop_string is None:
            text += self._detokenizer.push(visible[num_taken : num_taken + 1])
            num_taken += 1
        return text, num_taken

    def _parse_calls(self, calls: CallReader, delta: Delta) -> Delta:
        """Returns the delta with tool calls instead of their text. Text that the parser holds back is not sent."""
        is_last = delta.finish_reason is not None
        text, pieces = calls.read(delta.text, is_last=is_last)
        called = delta.finish_reason is FinishReason.STOP and calls.is_complete
        num_sent = delta.num_sent if is_last or not calls.is_holding else self._num_sent
        return replace(delta, text=text, calls=pieces, called=called, num_sent=num_sent)
