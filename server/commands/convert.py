"""`roost convert`: writes a checkpoint as safetensors, in another precision."""

from contextlib import closing

from ...engine import ConfigError, shown_bytes
from ...engine import convert as convert_checkpoint
from ..assembly.service import LoadProgress
from ..model_hub import find_model
from ..settings import load_settings
from ..terminal.text import print_status
from ..text.sample_texts import sample_texts
from .options import ConvertOptions


def convert(options: ConvertOptions) -> int:
    """Converts a checkpoint and prints its size and fingerprint.

    Returns:
      The exit status.

    Raises:
      ConfigError: An option is not known.
      CheckpointError: The source cannot be read, or the destination cannot be written.
    """
    settings = load_settings({"model": options.model, **options.settings})
    if options.calibrate is not None and settings.quantize != "int4":
        raise ConfigError("calibrate takes quantize int4")
    source = find_model(settings.model, settings.lora)
    texts = None if options.calibrate is None else sample_texts(source, options.calibrate)
    with closing(LoadProgress()) as progress:
        done = convert_checkpoint(
            source,
            options.destination,
            dtype=options.dtype,
            quantize=settings.quantize,
            texts=texts,
            progress=progress,
        )
    print_status(f"{options.destination}: {shown_bytes(done.num_bytes)}, fingerprint {done.fingerprint}")
    return 0
