"""`roost generate`: one answer, streamed to the terminal, without a server."""

import asyncio
import secrets
import sys
import time
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ..engine import AsyncEngine, ConfigError, SamplingParams, SavedState, StateFileError
from .chat import ChatFormatError, Message
from .fetching import find_model
from .generation import Choice, generate_choice
from .loading import LoadProgress, engine_config, is_loading, leave_while_loading, make_engine, state_key
from .metrics import Metrics
from .prompts import Prompt
from .served_model import ServedModel, open_served_model
from .settings import Settings
from .tokenizer import TextUnavailableError

_INTERRUPTED: Final = 130
"""The exit status of a program that Ctrl-C has ended."""


@dataclass(frozen=True, slots=True)
class Options:
    """
    Attributes:
      settings: of the engine, and the model.
      raw: continue the prompt as it stands, instead of answering it.
      temperature, top_p, top_k: None takes the checkpoint's default.
      seed: None takes another one each time.
      load_state: a state to go on from: a chat's next turn, or the raw text behind it.
      save_state: where the state is put at the end.
    """

    settings: Settings
    prompt: str
    raw: bool = False
    max_tokens: int = 256
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    load_state: Path | None = None
    save_state: Path | None = None


def generate(options: Options) -> int:
    """Streams an answer to stdout, all else to stderr; gives the exit status.

    Raises:
      RoostError: an option is wrong, or the model cannot be loaded.
    """
    config = replace(engine_config(options.settings), slots=1)
    source = find_model(options.settings.model)
    model = open_served_model(source, config)
    if options.load_state is not None and not options.load_state.is_file():
        raise ConfigError(f"{options.load_state}: no such file")
    choice = Choice(0, _prompt(model, options), _params(model, options))
    if source.is_random:
        _say(f"{model.id} has random weights: its answer is noise")
    progress = LoadProgress()
    engine = make_engine(source, config, progress)
    try:
        asyncio.run(_run(engine, model, choice, options))
    except KeyboardInterrupt:
        if is_loading(engine):
            leave_while_loading(progress, _INTERRUPTED)
        return _INTERRUPTED
    return 0


async def _run(engine: AsyncEngine, model: ServedModel, choice: Choice, options: Options) -> None:
    engine.start()
    await engine.wait_ready()
    key = state_key(options.settings)
    if options.load_state is not None:
        choice = _after(choice, _load(engine, options.load_state, key), model, raw=options.raw)
    began, num_tokens, num_sent = time.perf_counter(), 0, 0
    metrics = Metrics(lambda: engine.stats)
    try:
        async with aclosing(generate_choice(engine, model.tokenizer, metrics, "cli", choice)) as deltas:
            async for delta in deltas:
                num_tokens += len(delta.token_ids)
                num_sent = delta.num_sent
                print(delta.text, end="", flush=True)
        seconds = time.perf_counter() - began
        if options.save_state is not None:
            state = await engine.save("cli-0", num_sent)
            _write(options.save_state, engine.state_format.export(state, key))
    finally:
        print(flush=True)
        await engine.stop()
    _say(f"{num_tokens} tokens, {num_tokens / seconds:.1f} per second")


def _load(engine: AsyncEngine, path: Path, key: bytes | None) -> SavedState:
    try:
        return engine.state_format.load(path.read_bytes(), key)
    except StateFileError as error:
        raise ConfigError(f"{path} {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _after(choice: Choice, state: SavedState, model: ServedModel, *, raw: bool) -> Choice:
    """The choice behind a text that was read before. There is one BOS; and a turn that has ended ends its line."""
    new, token_ids = choice.prompt.token_ids, state.token_ids
    if new[0] == model.tokenizer.bos_id:
        new = new[1:]
    if not raw and token_ids[-1] in model.end_token_ids:
        new = (*model.tokenizer.encode("\n"), *new)
    return replace(choice, prompt=Prompt(token_ids + new), state=state.snapshot, state_is_imported=state.is_imported)


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None
    _say(f"the state is in {path}, {len(data) / 2**20:.1f} MiB")


def _prompt(model: ServedModel, options: Options) -> Prompt:
    """A chat of one message where the checkpoint knows chats, else the text with BOS in front."""
    tokenizer = model.tokenizer
    if not options.raw:
        try:
            return Prompt(tuple(model.chat_format.encode([Message("user", options.prompt)])))
        except ChatFormatError as error:
            _say(f"continuing the prompt as it stands: {error}")
    try:
        token_ids = tokenizer.encode(options.prompt)
    except TextUnavailableError as error:
        raise ConfigError(str(error)) from None
    if tokenizer.bos_id is not None:
        token_ids = [tokenizer.bos_id, *token_ids]
    if not token_ids:
        raise ConfigError("the prompt is empty")
    return Prompt(tuple(token_ids))


def _params(model: ServedModel, options: Options) -> SamplingParams:
    defaults = model.defaults
    try:
        return SamplingParams(
            max_tokens=options.max_tokens,
            temperature=defaults.temperature if options.temperature is None else options.temperature,
            top_p=defaults.top_p if options.top_p is None else options.top_p,
            top_k=defaults.top_k if options.top_k is None else options.top_k,
            min_p=defaults.min_p,
            typical_p=defaults.typical_p,
            seed=secrets.randbits(64) if options.seed is None else options.seed % 2**64,
            end_token_ids=model.end_token_ids,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
