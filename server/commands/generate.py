"""`roost generate`: streams one response to the terminal, without a server."""

import asyncio
import sys
import time

from ...engine import ConfigError, shown_bytes
from ..llm.async_llm import ConfiguredLLM
from ..llm.local_model import one_request_at_a_time
from ..llm.sampling_params import RequestOutputKind, SamplingParams
from ..settings import load_settings
from ..terminal.exits import INTERRUPTED_STATUS
from ..terminal.text import StreamWriter, print_status
from ..text.chat_format import ChatFormatError, Message
from .options import GenerateOptions

_REQUEST_ID = "cli"


def generate(options: GenerateOptions) -> int:
    """Streams generated text to stdout. All other output goes to stderr.

    Returns:
      The exit status.

    Raises:
      RoostError: An option is wrong, or the model cannot be loaded.
    """
    *named, prompt = options.words
    settings = load_settings({"model": named[0] if named else "demo", **options.settings})
    params = SamplingParams(**options.sampling(), output_kind=RequestOutputKind.DELTA)
    llm = ConfiguredLLM(one_request_at_a_time(settings))
    if options.save_state is not None and not options.save_state.absolute().parent.is_dir():
        raise ConfigError(f"--save-state {options.save_state}: give a file in a folder that exists")
    if llm.source.is_random:
        print_status(f"{llm.service.model.id} has random weights: its answer is noise")
    try:
        asyncio.run(_run(llm, sys.stdin.read() if prompt == "-" else prompt, params, options))
    except KeyboardInterrupt:
        llm.exit_if_loading(INTERRUPTED_STATUS)
        return INTERRUPTED_STATUS
    return 0


async def _run(llm: ConfiguredLLM, prompt: str, params: SamplingParams, options: GenerateOptions) -> None:
    """Streams the text, then saves the state and prints the speed."""
    is_chat = not options.raw and _can_chat(llm)
    async with llm:
        state = None if options.load_state is None else await llm.load_state(options.load_state)
        began, num_tokens = time.perf_counter(), 0
        if is_chat:
            outputs = llm.chat([{"role": "user", "content": prompt}], params, _REQUEST_ID, from_state=state)
        else:
            outputs = llm.generate(prompt, params, _REQUEST_ID, from_state=state)
        with StreamWriter() as writer:
            async for output in outputs:
                num_tokens += len(output.outputs[0].token_ids)
                writer.write(output.outputs[0].text)
        seconds = time.perf_counter() - began
        if (path := options.save_state) is not None:
            await llm.export_state(await llm.save_state(_REQUEST_ID), path)
            print_status(f"the state is in {path}, {shown_bytes(path.stat().st_size)}")
    print_status(f"{num_tokens} {'token' if num_tokens == 1 else 'tokens'}, {num_tokens / seconds:.1f} per second")


def _can_chat(llm: ConfiguredLLM) -> bool:
    """Returns whether the checkpoint has a chat template; prints why not."""
    try:
        llm.service.model.chat_format.encode([Message("user", "")])
    except ChatFormatError as error:
        print_status(f"continuing the prompt as it stands: {error}")
        return False
    return True
