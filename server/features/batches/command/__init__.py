"""`roost batch`: runs a file of requests, on a model in this process or on servers. Importing it costs little."""

from typing import Final

from ....terminal.options import takes_options
from .options import BatchOptions


@takes_options(BatchOptions, "slots", "prefill_chunk", "dtype", "quantize", "kv_dtype", "lora", "config")
def batch(options: BatchOptions) -> int:
    """Run the requests in IN, on a model that is loaded here or on servers, and write the responses to OUT.

    Run the same command again after Ctrl-C or a crash: OUT records which requests have ended. The first Ctrl-C waits
    for running requests, a second one does not.
    """
    from .run import batch as run

    return run(options)


command: Final = batch
