"""Checkpoint tensors in another precision, converted while they are read."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from ..core.arrays import HostArray
from ..model.quantization import quantize_on_host
from .layout import TensorSpec
from .tensors import ReadRows, StoredTensor, Tensors


def in_precision(tensors: Tensors, specs: Iterable[TensorSpec], dtype: np.dtype[Any] | None, *, int8: bool) -> Tensors:
    """Returns tensors that convert to another precision when read.

    Args:
      tensors: Tensors of the checkpoint, by name.
      specs: Tensors to return, in this order.
      dtype: Dtype of floating-point tensors; None keeps each tensor's own.
      int8: Whether matrices become int8, with an additional tensor of row scales for each.
    """
    converted: dict[str, StoredTensor] = {}
    for spec in specs:
        tensor = tensors[spec.name]
        if int8 and spec.is_matrix:
            converted |= {t.name: t for t in (_values(tensor), _scale(tensor, spec))}
        elif tensor.dtype == np.int8:
            converted |= {name: tensors[name] for name in (spec.name, spec.scale.name)}
        else:
            converted[spec.name] = tensor if dtype is None or dtype == tensor.dtype else _cast(tensor, dtype)
    return converted


def _cast(tensor: StoredTensor, dtype: np.dtype[Any]) -> StoredTensor:
    def open_tensor() -> ReadRows:
        read = tensor.reader()
        return lambda rows: read(rows).astype(dtype)

    return replace(tensor, dtype=dtype, open=open_tensor)


def _values(tensor: StoredTensor) -> StoredTensor:
    def open_tensor() -> ReadRows:
        read = tensor.reader()
        return lambda rows: quantize_on_host(read(rows)).values

    return replace(tensor, dtype=np.dtype("int8"), open=open_tensor)


def _scale(tensor: StoredTensor, spec: TensorSpec) -> StoredTensor:
    """Returns the row scales of a quantised matrix, which is read once more for them."""

    def open_tensor() -> ReadRows:
        read = tensor.reader()

        def scale(rows: slice) -> HostArray:
            # The scales' own pieces would span too many rows of the matrix, so it is read in its own pieces.
            parts = [
                quantize_on_host(read(slice(start, min(start + tensor.rows_per_piece, rows.stop)))).scale
                for start in range(rows.start, rows.stop, tensor.rows_per_piece)
            ]
            return np.concatenate(parts)[:, None]

        return scale

    name, shape = spec.scale.name, spec.scale.shape
    return replace(tensor, name=name, shape=shape, dtype=np.dtype("float32"), open=open_tensor)
