"""Bounds of sampling parameters' lists, and numbers that stand for something else on the device."""

from typing import Final

MAX_LOGPROBS: Final = 20
"""Maximum number of alternatives per token. The device returns this many if any row wants log-probabilities."""

MAX_STOP_IDS: Final = 64
"""Maximum number of end and stop ids of one request together."""

MAX_BIASES: Final = 300
"""Maximum number of tokens in a request's `logit_bias`; OpenAI's bound."""

MAX_BAD_TOKENS: Final = 4096
"""Maximum number of tokens in all bad words of one request together; each is a state of an automaton."""

PENALTY_WINDOW: Final = 4096
"""Number of generated tokens that penalties look back on, so that an endless output is not penalized for all of it."""

NO_TOKEN: Final = -1
"""Unused place of a list of ids on the device, and sampled token of a row whose logits are not numbers."""

NO_CHOICE: Final = -2
"""Sampled token of a row whose masks leave no token."""

NO_LIMIT: Final = 2**31 - 1
"""Last position of a row that generates without a limit."""
