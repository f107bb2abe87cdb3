"""Contestant: Hugging Face transformers' own `generate`, with PyTorch on the CPU.

Prompts of different lengths are padded on the left and masked, as in its documentation.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from jobs import equal_jobs, outcome
from models import GRIFFINS
from models import Griffin as Shape
from protocol import Command, answer_all, draw_prompts, versions
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

PAD = 0


class Clock(transformers.StoppingCriteria):
    """Records when each token arrived, and stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class Peer:
    """A model with random weights."""

    def __init__(self, shape: Shape, dtype: str) -> None:
        self.shape = shape
        torch.manual_seed(0)
        kind = getattr(torch, dtype)
        config = RecurrentGemmaConfig(**shape.hf_config(dtype))
        with torch.device("meta"):
            model = RecurrentGemmaForCausalLM(config)
        self.model = model.to(kind).to_empty(device="cpu").eval()
        self.model.tie_weights()
        for name, value in self.model.named_parameters():
            self.draw(name, value)
        for name, value in self.model.named_buffers():
            self.restore(name, value)
        self.model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=PAD)

    @torch.no_grad()
    def draw(self, name: str, value: torch.Tensor) -> None:
        """Draws weights of usual sizes; the library's own way takes minutes for 2.7 billion."""
        if value.ndim == 1 or name.endswith("bias"):
            value.zero_()
        else:
            bound = (3 / value.shape[-1]) ** 0.5
            value.uniform_(-bound, bound)
        if name.endswith("recurrent_param"):
            value.uniform_(-9.0, -4.3)  # decays between 0.9 and 0.999 (arXiv 2402.19427)

    def restore(self, name: str, value: torch.Tensor) -> None:
        """Computes buffers that a model on the meta device lacks."""
        if name.endswith("inv_freq"):
            size = 2 * value.numel()
            value.copy_(10000.0 ** -(torch.arange(0, size, 2) / size))
        elif name.endswith("normalizer"):
            value.fill_(self.shape.width**0.5)
        else:
            raise ValueError(f"no value is known for the buffer {name}")

    @property
    def num_parameters(self) -> int:
        return sum(value.numel() for value in self.model.parameters())

    def warm(self) -> None:
        self.decode(2, 16, 4, 0)

    def decode(self, rows: int, prompt: int, new: int, seed: int) -> Mapping[str, float]:
        ids = torch.tensor(draw_prompts(rows, prompt, self.shape.vocab_size, seed))
        clock = Clock()
        start = time.perf_counter()
        self.generate(ids, torch.ones_like(ids), new, clock)
        times = clock.times
        found = {"prefill_tokens_per_s": rows * prompt / (times[0] - start)}
        if new > 1:
            found["step_ms"] = 1e3 * (times[-1] - times[0]) / (new - 1)
            found["decode_tokens_per_s"] = rows * (new - 1) / (times[-1] - times[0])
        return found

    def prefill(self, rows: int, prompt: int, seed: int) -> Mapping[str, float]:
        return self.decode(rows, prompt, 1, seed)

    def job(self, rows: int, prompt: int, new: int, seed: int) -> Mapping[str, float]:
        """Generates for all requests as one static batch."""
        jobs = equal_jobs(rows, prompt, new, self.shape.vocab_size, seed)
        clock, start = Clock(), time.perf_counter()
        ids = torch.tensor([ids for ids, _ in jobs])
        self.generate(ids, torch.ones_like(ids), new, clock)
        seconds = time.perf_counter() - start
        return outcome([[now - start for now in clock.times]] * rows, rows * new, seconds)

    def agree(self, prompts: Sequence[Sequence[int]], new: int) -> Mapping[str, Any]:
        """Returns the tokens after each prompt alone, and after all in one batch."""
        return {"alone": [self.say([ids], new)[0] for ids in prompts], "together": self.say(prompts, new)}

    def say(self, prompts: Sequence[Sequence[int]], new: int) -> list[Mapping[str, Any]]:
        length = max(map(len, prompts))
        ids = torch.tensor([[PAD] * (length - len(row)) + list(row) for row in prompts])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in prompts])
        found = self.generate(ids, mask, new, Clock())
        best = torch.log_softmax(found.logits[0].float(), -1).topk(20)
        return [
            {"tokens": tokens.tolist(), "top": dict(zip(map(str, top.tolist()), values.tolist(), strict=True))}
            for tokens, top, values in zip(found.sequences[:, length:], best.indices, best.values, strict=True)
        ]

    @torch.inference_mode()
    def generate(self, ids: torch.Tensor, mask: torch.Tensor, new: int, clock: Clock) -> Any:
        return self.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new,
            min_new_tokens=new,
            stopping_criteria=transformers.StoppingCriteriaList([clock]),
            return_dict_in_generate=True,
            output_logits=new <= 32,  # only if they are few
        )


def start(wanted: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Command]]:
    torch.set_num_threads(wanted["threads"])
    peer = Peer(GRIFFINS[wanted["model"]], wanted["dtype"])
    facts = {
        "parameters": peer.num_parameters,
        "dtype": wanted["dtype"],
        "versions": versions(("torch", "transformers")),
    }
    return facts, {
        "warm": peer.warm,
        "decode": peer.decode,
        "prefill": peer.prefill,
        "job": peer.job,
        "agree": peer.agree,
    }


if __name__ == "__main__":
    answer_all(start)
