"""LoRA adapters, as PEFT writes them, merged into a checkpoint's matrices while these are read (arXiv 2106.09685).

A matrix W becomes W + s B A in float32, before it is rounded or quantised. Fields of an adapter's config are refused if
merging would take more than a sum.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..model.config import ModelConfig, read_fields
from ..types.errors import CheckpointError
from ..types.host_memory import HostArray
from .format import ReadRows, StoredTensor, Tensors, content_pieces
from .layout import TensorSpec, tensor_specs
from .safetensors_files import open_files

_WEIGHTS: Final = "adapter_model.safetensors"

_FACTOR: Final = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
"""Name of a factor: A of shape [rank, inputs], B of shape [outputs, rank]."""

_CONFIG: Final = "adapter_config.json"

_NO_EFFECT: Final = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",  # PEFT ignores it for linear layers, and all matrices here are linear layers'
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
"""Fields that do not change the sum. The tensors' names say which matrices an adapter changes."""

_READ: Final = frozenset(
    {"alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "peft_type", "r", "rank_pattern", "use_rslora"}
)

_INITS: Final = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base model's matrices as they are."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """Adapter on this machine, whose config was checked and whose tensors were not.

    Attributes:
      name: Name for clients; never a path.
      weights: File with the tensors.
      scale: Additional factor; 1 merges the adapter as it was trained.
      digest: Hash of the files' content.
      rank: Rank of matrices that `ranks` does not name.
      alpha: Numerator of the scale of matrices that `alphas` does not name.
      ranks: Ranks by patterns of module names.
      alphas: Numerators by patterns of module names.
      has_root: Whether the scale is alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732), not alpha / rank.
    """

    name: str
    weights: Path
    scale: float
    digest: str
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    has_root: bool

    def rank_of(self, module: str) -> int:
        """Returns the rank of a module's adapter."""
        return _of_pattern(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Returns the factor of B A for a module."""
        rank = self.rank_of(module)
        return self.scale * _of_pattern(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.has_root else rank)


def open_adapter(name: str, directory: Path, scale: float = 1.0) -> Adapter:
    """Finds an adapter in a folder.

    Raises:
      CheckpointError: A file is missing, the config is invalid, or merging would need more than a sum.
    """
    if not math.isfinite(scale):
        raise CheckpointError(f"{directory}: the scale must be a number, got {scale}")
    ranks = read_fields(directory / _CONFIG, _ranks, hint="; --lora takes a folder by PEFT")
    weights = directory / _WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"{weights}: is missing; --lora takes a folder with an adapter that PEFT has saved")
    digest = hashlib.sha256()
    for path in (directory / _CONFIG, weights):
        for piece in content_pieces(path):
            digest.update(piece)
    return Adapter(name, weights, scale, digest.hexdigest()[:32], **ranks)


@contextmanager
def merged(tensors: Tensors, config: ModelConfig, adapters: Sequence[Adapter]) -> Iterator[Tensors]:
    """Yields a checkpoint's tensors with adapters merged into them in order; nothing is read yet.

    Raises:
      CheckpointError: An adapter's file is broken or belongs to another model, or a matrix is stored quantised.
    """
    specs = {spec.name: spec for spec in tensor_specs(config)}
    with ExitStack() as stack:
        for adapter in adapters:
            factors = stack.enter_context(open_files([adapter.weights]))
            tensors = {**tensors, **dict(_sums(adapter, factors, specs, tensors))}
        yield tensors


def _sums(
    adapter: Adapter, factors: Tensors, specs: Mapping[str, TensorSpec], tensors: Tensors
) -> Iterator[tuple[str, StoredTensor]]:
    """Yields the matrices that an adapter changes, by name."""
    modules: dict[str, dict[str, StoredTensor]] = {}
    for name, factor in factors.items():
        if (found := _FACTOR.fullmatch(name)) is None:
            raise CheckpointError(f"{factor.file}: tensor {name} is neither lora_A nor lora_B of a matrix")
        modules.setdefault(found["module"], {})[found["side"]] = factor
    for module, sides in modules.items():
        spec = specs.get(f"{module}.weight")
        if spec is None or not spec.is_matrix or spec.is_embedding:
            raise CheckpointError(f"{adapter.weights}: {module} is no matrix of this model that an adapter can change")
        _check_not_quantized(spec, tensors)
        _check_factors(adapter, module, sides, spec)
        if spec.name in tensors:  # the loader names matrices that the checkpoint lacks
            yield spec.name, _sum(tensors[spec.name], sides["A"], sides["B"], adapter.scale_of(module))


def _check_not_quantized(spec: TensorSpec, tensors: Tensors) -> None:
    stored = tensors.get(spec.packed_name) or tensors.get(spec.name)
    if stored is not None and stored.dtype.kind == "i":
        name = "int8" if stored.dtype == np.int8 else "int4"
        raise CheckpointError(f"{stored.file}: is stored in {name}; take the original weights for --lora")


def _check_factors(adapter: Adapter, module: str, sides: Mapping[str, StoredTensor], spec: TensorSpec) -> None:
    rank, (outputs, inputs) = adapter.rank_of(module), spec.shape
    for side, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
        if (factor := sides.get(side)) is None:
            raise CheckpointError(f"{adapter.weights}: {module} has no lora_{side}; save the adapter again")
        if factor.shape != shape:
            raise CheckpointError(
                f"{adapter.weights}: {factor.name} has shape {list(factor.shape)}, but rank {rank} and this model ask "
                f"for {list(shape)}; is the adapter of another model?"
            )
        if factor.dtype.kind == "i":
            raise CheckpointError(f"{adapter.weights}: {factor.name} is stored in {factor.dtype}, not as numbers")


def _sum(matrix: StoredTensor, a: StoredTensor, b: StoredTensor, scale: float) -> StoredTensor:
    """Returns matrix + scale b a in float32; it is rounded to the matrix's dtype where that is kept."""

    def open_tensor() -> ReadRows:
        read, read_b, whole_a = matrix.reader(), b.reader(), a.whole().astype(np.float32)

        def read_sum(rows: slice) -> HostArray:
            change: HostArray = (read_b(rows).astype(np.float32) @ whole_a) * np.float32(scale)
            change += read(rows)
            return change

        return read_sum

    return replace(matrix, dtype=np.dtype("float32"), open=open_tensor, kept_dtype=matrix.kept_dtype or matrix.dtype)


def _ranks(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of `Adapter` that a config declares."""
    if fields.get("peft_type") != "LORA":
        raise CheckpointError(f"peft_type must be LORA, got {fields.get('peft_type')!r}")
    if fields.get("bias", "none") != "none":
        raise CheckpointError(f"bias {fields['bias']!r} is not supported, only 'none'; merge the adapter with PEFT")
    if (init := fields.get("init_lora_weights", True)) not in _INITS:
        raise CheckpointError(
            f"init_lora_weights {init!r} changes the base model, which only PEFT repeats; merge the adapter with PEFT"
        )
    for name in sorted(fields.keys() - _NO_EFFECT - _READ):
        if fields[name]:
            raise CheckpointError(f"{name} is not supported; merge the adapter with PEFT, and serve the whole model")
    return {
        "rank": _rank("r", fields.get("r")),
        "alpha": _number("lora_alpha", fields.get("lora_alpha")),
        "ranks": {pattern: _rank("rank_pattern", value) for pattern, value in _patterns(fields, "rank_pattern")},
        "alphas": {pattern: _number("alpha_pattern", value) for pattern, value in _patterns(fields, "alpha_pattern")},
        "has_root": bool(fields.get("use_rslora", False)),
    }


def _patterns(fields: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    try:
        patterns = dict(fields.get(name) or {})
        for pattern in patterns:
            re.compile(pattern)
    except (TypeError, ValueError, re.error) as error:
        raise CheckpointError(f"{name} must be an object with regular expressions as names ({error})") from None
    return list(patterns.items())


def _of_pattern[Value](patterns: Mapping[str, Value], module: str, default: Value) -> Value:
    """Returns the value of the first pattern that matches the end of a module's name, from the start of one part on."""
    return next((value for key, value in patterns.items() if re.fullmatch(rf"(?:.*\.)?(?:{key})", module)), default)


def _rank(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value


def _number(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise CheckpointError(f"{name} must be a number, got {value!r}")
    return float(value)
