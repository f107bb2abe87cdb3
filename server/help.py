"""What --help says in more than one place."""

from typing import Final

from .settings import Settings

MODEL_HELP: Final = (
    "A directory (safetensors with config.json, or an official Flax checkpoint), owner/name[@revision] on Hugging "
    "Face, kaggle:google/recurrentgemma/flax/2b-it, gs://bucket/path, random:2b, random:9b, random:CONFIG.json, or "
    "demo."
)

QUANTIZE_HELP: Final = "int8: weights take half the memory, and steps less time; answers are almost the same."


def shown_default(name: str) -> str:
    """A setting's default. Flags themselves default to None, so that the environment and the file have their say."""
    value = Settings.model_fields[name].default
    return "auto" if value is None else str(value)
