"""`roost convert`: writes a checkpoint in another format or precision."""

from ...engine import CHECKPOINT_FORMATS, QUANTIZATIONS, ConfigError, shown_bytes
from ...engine import convert as convert_checkpoint
from ..assembly.service import LoadProgress
from ..model_hub import find_model
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
    dtype, calibrate, destination = options.dtype, options.calibrate, options.destination
    quantize = options.settings["quantize"]
    if dtype not in (None, "float32", "bfloat16"):
        raise ConfigError(f"dtype must be float32 or bfloat16, not {dtype!r}")
    if quantize not in (None, "int8", "int4"):
        raise ConfigError(f"quantize must be {' or '.join(QUANTIZATIONS)}, not {quantize!r}")
    if calibrate is not None and quantize != "int4":
        raise ConfigError("calibrate takes quantize int4")
    if options.format not in CHECKPOINT_FORMATS:
        raise ConfigError(f"format must be {' or '.join(CHECKPOINT_FORMATS)}, not {options.format!r}")
    source = find_model(options.model, options.settings["lora"] or ())
    texts = None if calibrate is None else sample_texts(source, calibrate)
    progress = LoadProgress()
    try:
        done = convert_checkpoint(
            source,
            destination,
            dtype=dtype,
            quantize=quantize,
            texts=texts,
            to=options.format,
            progress=progress,
        )
    finally:
        progress.close()
    print_status(f"{destination}: {shown_bytes(done.num_bytes)}, fingerprint {done.fingerprint}")
    return 0
