"""Official checkpoints: their arrays and config in any file format, and the format of Orbax.

A config's sizes come from the arrays, and its other fields from `griffin_config.json` or a preset.

Orbax writes Zarr arrays, each in a separate folder or all in one OCDBT store. TensorStore reads them slice by slice:
Orbax itself restores whole arrays, and its versions name the tree differently, while the stored form is the same.
"""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import tensorstore

from ..model.config import PRESETS, ModelConfig, read_fields
from ..types.errors import CheckpointError
from .format import BFLOAT16, CheckpointFormat, FoundCheckpoint, ReadRows, StoredTensor, Tensors, tokenizer_directory
from .layout import EMBEDDING_ARRAY, FlaxView, tensor_specs

GRIFFIN_CONFIG: Final = "griffin_config.json"
"""Name of the config file beside an official checkpoint, for models that are no preset."""

FIELDS: Final[Mapping[str, tuple[str, type]]] = {
    "attention_window_size": ("window", int),
    "logits_soft_cap": ("logits_soft_cap", float),
    "embeddings_scale_by_sqrt_dim": ("scale_embeddings", bool),
}
"""Fields of the file that no array's shape determines: the names of `ModelConfig`'s fields, and their types."""


class OfficialArray(NamedTuple):
    """Array of an official checkpoint.

    Attributes:
      dtype: Name of the dtype.
      open: Returns a reader of the rows of a tensor in the array, which does not check values.
    """

    shape: tuple[int, ...]
    dtype: str
    open: Callable[[FlaxView], ReadRows]


def found_arrays(directory: Path, weights: Path, arrays: Mapping[str, OfficialArray]) -> FoundCheckpoint:
    """Returns the checkpoint in a folder, whose config follows from its arrays.

    Args:
      directory: Folder of the checkpoint; it or its parent may contain a `griffin_config.json`.
      weights: File or folder with the arrays.
      arrays: The arrays, by their official names.

    Raises:
      CheckpointError: An array that determines a size is missing, the file is invalid or disagrees with the arrays, or
        neither a file nor a preset has the other fields.
    """
    try:
        sizes = _sizes({name: array.shape for name, array in arrays.items()})
    except (KeyError, ValueError) as error:
        missing = error.args[0] if isinstance(error, KeyError) else "with the expected number of axes"
        raise CheckpointError(
            f"{directory}: is no RecurrentGemma checkpoint: it has no array {missing}; download all of it again"
        ) from None
    config = ModelConfig(**sizes, **_other_fields(directory, sizes), dtype=arrays[EMBEDDING_ARRAY].dtype)
    return FoundCheckpoint(config, tokenizer_directory(directory), (weights,))


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Returns the fields that the arrays' shapes determine.

    Raises:
      KeyError: An array is missing.
      ValueError: An array has an unexpected number of axes.
    """
    vocab_size, width = shapes[EMBEDDING_ARRAY]
    _, _, mlp_width = shapes["blocks.0.mlp_block.ffw_up.w"]
    block_types: list[str] = []
    while f"blocks.{len(block_types)}.temporal_pre_norm.scale" in shapes:
        attends = f"blocks.{len(block_types)}.attention_block.proj_k.kernel" in shapes
        block_types.append("attention" if attends else "recurrent")
    sizes = {"vocab_size": vocab_size, "width": width, "mlp_width": mlp_width, "block_types": tuple(block_types)}
    if "recurrent" in block_types:
        block = f"blocks.{block_types.index('recurrent')}.recurrent_block"
        num_heads, size, _ = shapes[f"{block}.rg_lru.a_gate.w"]
        conv_width, _ = shapes[f"{block}.conv_1d.w"]
        return sizes | {"num_heads": num_heads, "lru_width": num_heads * size, "conv_width": conv_width}
    _, head_size = shapes[f"blocks.{block_types.index('attention')}.attention_block.proj_k.kernel"]
    return sizes | {"num_heads": width // head_size, "lru_width": width}


def _other_fields(directory: Path, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that only a file or a preset has."""
    for file in (directory / GRIFFIN_CONFIG, directory.resolve().parent / GRIFFIN_CONFIG):
        if file.is_file():
            return read_fields(file, _declared_fields)
    for preset in PRESETS.values():
        if all(getattr(preset, name) == size for name, size in sizes.items()):
            return {name: getattr(preset, name) for name, _ in FIELDS.values()}
    raise CheckpointError(
        f"{directory}: its sizes are those of no preset ({', '.join(PRESETS)}), so put a {GRIFFIN_CONFIG} there that "
        f"has {', '.join(FIELDS)}"
    )


def _declared_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that only a file has; its sizes are not read."""
    for name, (_, kind) in FIELDS.items():
        if type(fields.get(name)) is not kind and not (kind is float and type(fields.get(name)) is int):
            raise CheckpointError(f"{name} must be of type {kind.__name__}, got {fields.get(name)!r}")
    return {ours: kind(fields[name]) for name, (ours, kind) in FIELDS.items()}


_DTYPES: Final = {dtype.name: dtype for dtype in (np.dtype("float32"), BFLOAT16, np.dtype("float16"))}
"""Dtypes that arrays may have, by name."""

_ROOT: Final = "params."
"""Key under which the official package saves the tree; published checkpoints have the tree at the root."""


def without_root[Array](arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Returns arrays by their names in the tree of parameters."""
    rooted = all(name.startswith(_ROOT) for name in arrays)
    return {name.removeprefix(_ROOT) if rooted else name: array for name, array in arrays.items()}


def check_dtype(place: Path, key: str, dtype: str) -> np.dtype[Any]:
    """Returns the dtype of an array.

    Raises:
      CheckpointError: It is not supported.
    """
    if dtype not in _DTYPES:
        raise CheckpointError(
            f"{place}: array {key} is of type {dtype}, which is not supported, only {', '.join(_DTYPES)}"
        )
    return _DTYPES[dtype]


def tensors_of(place: Path, arrays: Mapping[str, OfficialArray], config: ModelConfig) -> Tensors:
    """Returns the tensors in arrays with Hugging Face's names and shapes; unknown arrays keep their own names.

    Raises:
      CheckpointError: An array has an unsupported dtype.
    """
    views = {spec.name: spec.official for spec in tensor_specs(config) if spec.official.key in arrays}
    known = {view.key for view in views.values()}
    views |= {key: FlaxView(key) for key in arrays if key not in known}

    def stored(name: str, view: FlaxView) -> StoredTensor:
        array = arrays[view.key]
        dtype = check_dtype(place, view.key, array.dtype)
        return StoredTensor(name, place, view.shape_of(array.shape), dtype, partial(array.open, view))

    return {name: stored(name, view) for name, view in views.items()}


_ZARR: Final[Mapping[str, str]] = {".zarray": "zarr", "zarr.json": "zarr3"}
"""TensorStore's driver by the name of a file that every array has."""


def is_orbax(directory: Path) -> bool:
    """Returns whether a folder is an Orbax checkpoint."""
    markers = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")
    return any((directory / name).is_file() for name in markers) or any(directory.glob("*/.zarray"))


def open_arrays(directory: Path) -> dict[str, tensorstore.TensorStore]:
    """Returns the arrays by their official names, without reading them.

    Raises:
      CheckpointError: The folder has no arrays, or one cannot be opened.
    """
    specs = _opened(directory, lambda: _specs(directory.resolve()))
    stores = {name: tensorstore.open(spec, open=True, read=True) for name, spec in specs.items()}
    opened = {name: _opened(directory, store.result) for name, store in stores.items()}
    if not opened:
        raise CheckpointError(
            f"{directory}: looks like an Orbax checkpoint, but holds no arrays; download all of it again"
        )
    return without_root(opened)


def _open(directory: Path) -> dict[str, OfficialArray]:
    return {
        name: OfficialArray(tuple(array.shape), array.dtype.name, partial(_reader, directory, array))
        for name, array in open_arrays(directory).items()
    }


def _specs(directory: Path) -> dict[str, dict[str, Any]]:
    """Returns TensorStore's spec of each array, by name."""
    base = {"driver": "file", "path": f"{directory}/"}
    if (directory / "manifest.ocdbt").is_file():
        store: dict[str, Any] = {"driver": "ocdbt", "base": base}
        keys = [key.decode() for key in tensorstore.KvStore.open(store).result().list().result()]
    else:
        store = base
        keys = [f"{file.parent.name}/{file.name}" for name in _ZARR for file in directory.glob(f"*/{name}")]
    strict = {} if _may_omit_zeros(directory) else {"fill_missing_data_reads": False}
    found = (key.rpartition("/") for key in keys)
    return {
        name: {"driver": _ZARR[file], "kvstore": {**store, "path": f"{store.get('path', '')}{name}/"}, **strict}
        for name, _, file in found
        if file in _ZARR
    }


def _may_omit_zeros(directory: Path) -> bool:
    """Returns whether missing chunks are zeros, as older versions of Orbax write them, rather than lost."""
    try:
        metadata = json.loads((directory / "_METADATA").read_bytes())
        return not metadata["store_array_data_equal_to_fill_value"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return True


def _reader(directory: Path, array: tensorstore.TensorStore, view: FlaxView) -> ReadRows:
    """Returns a reader of one tensor's rows that caches decoded chunks for the following rows."""
    chunk = math.prod(size or 1 for size in array.chunk_layout.read_chunk.shape or array.shape)
    limit = 2 * chunk * array.dtype.numpy_dtype.itemsize
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": limit}})
    store = _opened(directory, tensorstore.open(array.spec(), context=context, open=True, read=True).result)
    tensor = view.of(store)
    return lambda rows: _opened(directory, lambda: tensor[rows].read(order="C").result())


def _opened[Value](directory: Path, result: Callable[[], Value]) -> Value:
    try:
        return result()
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split(" [source locations")[0].split())[:300]
        raise CheckpointError(f"{directory}: is no whole Orbax checkpoint ({reason}); download it again") from None


def _find(directory: Path) -> FoundCheckpoint | None:
    """Returns the checkpoint in a folder, which is the folder itself or the only checkpoint inside it."""
    if is_orbax(directory):
        found = [directory]
    else:
        found = sorted(path for path in directory.iterdir() if path.is_dir() and is_orbax(path))
    if len(found) > 1:
        raise CheckpointError(f"{directory}: holds several checkpoints; choose one of {', '.join(map(str, found))}")
    if not found:
        return None
    return found_arrays(found[0], found[0], _open(found[0]))


ORBAX: Final = CheckpointFormat(
    find=_find,
    owns=lambda weights: len(weights) == 1 and weights[0].is_dir(),
    open=lambda weights, config: nullcontext(tensors_of(weights[0], _open(weights[0]), config)),
)
