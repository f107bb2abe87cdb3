"""`roost generate`: streams one response to the terminal, without a server."""

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...engine import ConfigError, SavedState, StateFileError, pack_ids, shown_bytes
from ..generation.prompts import Prompt, without_end_token
from ..generation.spec import Choice
from ..settings import Settings
from ..terminal.failure import INTERRUPTED_STATUS
from ..terminal.text import StreamWriter, print_status
from ..text.chat_template import ChatFormatError, Message
from ..text.served_model import ServedModel
from ..text.tokenizer import TextUnavailableError
from .local_model import LocalModel, sampling_params
from .sampling_options import SamplingOptions


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """Options of `roost generate`.

    Attributes:
      settings: Settings of the engine and the model.
      prompt: Prompt.
      raw: Whether to continue the prompt instead of applying the chat template.
      sampling: Sampling options.
      load_state: File of a saved state to continue from; None starts without a state.
      save_state: File in which the state is saved at the end; None saves none.
    """

    settings: Settings
    prompt: str
    raw: bool = False
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    load_state: Path | None = None
    save_state: Path | None = None


def generate(options: GenerateOptions) -> int:
    """Streams generated text to stdout. All other output goes to stderr.

    Returns:
      The exit status.

    Raises:
      RoostError: An option is wrong, or the model cannot be loaded.
    """
    local = LocalModel(options.settings)
    model = local.model
    file = None if options.load_state is None else _read_state(local, options.load_state)
    if options.save_state is not None and not options.save_state.absolute().parent.is_dir():
        raise ConfigError(f"--save-state {options.save_state}: give a file in a folder that exists")
    choice = Choice(0, _prompt(model, options), sampling_params(options.sampling, model))
    if local.source.is_random:
        print_status(f"{model.id} has random weights: its answer is noise")
    try:
        asyncio.run(_run(local, choice, options, file))
    except KeyboardInterrupt:
        local.exit_if_loading(INTERRUPTED_STATUS)
        return INTERRUPTED_STATUS
    return 0


async def _run(local: LocalModel, choice: Choice, options: GenerateOptions, file: bytes | None) -> None:
    await local.start()
    try:
        if file is not None:
            state = local.engine.state_format.load(file, local.state_key)
            choice = _after(choice, state, local.model, options.prompt)
        await _stream(local, choice, options)
    finally:
        await local.engine.stop()


async def _stream(local: LocalModel, choice: Choice, options: GenerateOptions) -> None:
    """Streams the text, then saves the state and prints the speed."""
    engine = local.engine
    began, num_tokens, num_sent = time.perf_counter(), 0, 0
    with StreamWriter() as writer:
        async with aclosing(local.generate("cli", choice)) as deltas:
            async for delta in deltas:
                num_tokens += len(delta.token_ids)
                num_sent = delta.num_sent
                writer.write(delta.text)
    seconds = time.perf_counter() - began
    if options.save_state is not None:
        state = await engine.save("cli-0", num_sent)
        _write(options.save_state, engine.state_format.export(state, local.state_key))
    print_status(f"{num_tokens} {'token' if num_tokens == 1 else 'tokens'}, {num_tokens / seconds:.1f} per second")


def _read_state(local: LocalModel, path: Path) -> bytes:
    try:
        data = path.read_bytes()
        local.check_state(data)
    except StateFileError as error:
        raise ConfigError(f"--load-state {path} {error}") from None
    except OSError as error:
        raise ConfigError(f"--load-state {path}: cannot be read ({error.strerror})") from None
    return data


def _after(choice: Choice, state: SavedState, model: ServedModel, text: str) -> Choice:
    """Continues a choice from a saved state. In a chat, the state's last message is closed; otherwise a second BOS is
    dropped.
    """
    new, token_ids = choice.prompt.token_ids, state.token_ids
    if choice.prompt.is_chat:
        new = model.chat_format.encode_after_reply([Message("user", text)])
        token_ids = without_end_token(state, model.end_token_ids)
    elif new[0] == model.tokenizer.bos_id:
        new = new[1:]
    return replace(
        choice, prompt=Prompt(pack_ids(token_ids, new)), state=state.snapshot, state_is_imported=state.is_imported
    )


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None
    print_status(f"the state is in {path}, {shown_bytes(len(data))}")


def _prompt(model: ServedModel, options: GenerateOptions) -> Prompt:
    """Returns a chat of one message if the checkpoint has a chat template; otherwise the text after BOS."""
    tokenizer = model.tokenizer
    if not options.raw:
        try:
            return Prompt(model.chat_format.encode([Message("user", options.prompt)]), is_chat=True)
        except ChatFormatError as error:
            print_status(f"continuing the prompt as it stands: {error}")
    try:
        token_ids = tokenizer.encode(options.prompt)
    except TextUnavailableError as error:
        raise ConfigError(str(error)) from None
    if tokenizer.bos_id is not None:
        token_ids = [tokenizer.bos_id, *token_ids]
    if not token_ids:
        raise ConfigError("the prompt is empty")
    return Prompt(tuple(token_ids))
