"""lm-eval on a model in its own process, without a server (pip install lm-eval).

    python examples/lm_eval_model.py run --model roost --model_args model=demo --tasks TASK

This is the command `lm_eval` with one more model, `roost`; its arguments are those of `roost.LLM`. In a program, pass
an instance of `Roost` to `lm_eval.simple_evaluate(model=…)`.
"""

from collections.abc import Sequence
from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from roost import LLM, SamplingParams

MAX_TOKENS = 256
"""Tokens of an answer, for tasks that set no limit."""


@register_model("roost")
class Roost(LM):
    """A model that lm-eval asks for log-likelihoods and answers.

    Args:
      model: The model, as for `roost.LLM`.
      batch_size, max_batch_size, device: Arguments of lm-eval's command, without effect: Roost batches by itself.
      settings: Settings of `roost.LLM`.
    """

    def __init__(
        self, model: str, batch_size: Any = None, max_batch_size: Any = None, device: Any = None, **settings: Any
    ) -> None:
        super().__init__()
        self.llm = LLM(model, **settings)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Returns the log-likelihood of each continuation, and whether greedy decoding would generate it."""
        scores = self.llm.score([request.args for request in requests])
        return [(score.logprob, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Returns the log-likelihood of each text. No text is too long for a window."""
        return [score.logprob for score in self.llm.score([("", request.args[0]) for request in requests])]

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Returns the text that is generated after each context."""
        contexts = [request.args[0] for request in requests]
        outputs = self.llm.generate(contexts, [parameters(request.args[1]) for request in requests])
        return [output.outputs[0].text for output in outputs]


def parameters(options: dict[str, Any]) -> SamplingParams:
    """Returns the parameters that mean a task's `generation_kwargs`; greedy decoding by default, as in lm-eval."""
    stop = options.get("until")
    return SamplingParams(
        max_tokens=options.get("max_gen_toks", MAX_TOKENS),
        temperature=float(options.get("temperature", 0.0)) if options.get("do_sample", True) else 0.0,
        top_p=options.get("top_p"),
        top_k=options.get("top_k"),
        stop=[stop] if isinstance(stop, str) else stop,
    )


if __name__ == "__main__":
    cli_evaluate()
