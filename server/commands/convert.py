"""`roost convert`: writes a checkpoint in another format or precision."""

from collections.abc import Sequence
from pathlib import Path

from ...engine import CHECKPOINT_FORMATS, QUANTIZATIONS, ConfigError, Quantization, convert, shown_bytes
from ..assembly.service import LoadProgress
from ..model_hub import find_model
from ..terminal.text import print_status
from ..text.sample_texts import sample_texts


def run(
    model: str,
    destination: Path,
    dtype: str | None,
    quantize: str | None,
    to: str,
    lora: Sequence[str] = (),
    calibrate: str | None = None,
) -> None:
    """Converts a checkpoint and prints its size and fingerprint.

    Raises:
      ConfigError: An option is not known.
      CheckpointError: The source cannot be read, or the destination cannot be written.
    """
    if dtype not in (None, "float32", "bfloat16"):
        raise ConfigError(f"dtype must be float32 or bfloat16, not {dtype!r}")
    if calibrate is not None and quantize != "int4":
        raise ConfigError("calibrate takes quantize int4")
    source = find_model(model, lora)
    texts = None if calibrate is None else sample_texts(source, calibrate)
    progress = LoadProgress()
    try:
        done = convert(
            source,
            destination,
            dtype=dtype,
            quantize=_quantize(quantize),
            texts=texts,
            to=_format(to),
            progress=progress,
        )
    finally:
        progress.close()
    print_status(f"{destination}: {shown_bytes(done.num_bytes)}, fingerprint {done.fingerprint}")


def _quantize(name: str | None) -> Quantization | None:
    match name:
        case None | "int8" | "int4":
            return name
    raise ConfigError(f"quantize must be {' or '.join(QUANTIZATIONS)}, not {name!r}")


def _format(name: str) -> str:
    if name not in CHECKPOINT_FORMATS:
        raise ConfigError(f"format must be {' or '.join(CHECKPOINT_FORMATS)}, not {name!r}")
    return name
