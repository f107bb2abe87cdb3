"""Records that describe how an array is sharded along the mesh axis `model`."""

from dataclasses import dataclass

import numpy as np
from jax.sharding import PartitionSpec

from ..types.arrays import HostArray
from ..types.config import MODEL
from .collectives import REPLICATED


@dataclass(frozen=True, slots=True)
class Segment:
    """Adjacent rows or columns of a parameter that are sharded together.

    Attributes:
      size: Number of rows or columns.
      unit: Size of a part that is never split, such as a head or a gate block.
      is_padded: False where every shard holds the whole segment if its units do not divide evenly.
    """

    size: int
    unit: int = 1
    is_padded: bool = True

    def is_sharded(self, num_shards: int) -> bool:
        """Returns whether each shard holds a part of the segment, and not the whole."""
        return self.is_padded or self.size // self.unit % num_shards == 0

    def shard_size(self, num_shards: int) -> int:
        """Returns the rows or columns of a shard, padding included."""
        return -(-self.size // self.unit // num_shards) * self.unit if self.is_sharded(num_shards) else self.size


@dataclass(frozen=True, slots=True)
class ShardingRule:
    """How an array is sharded over `model`.

    Attributes:
      segments: Consecutive parts of that axis, sharded one by one. Without segments the array is
        replicated.
      per: Number of the parameter's rows or columns, which the segments count, in one of the array's.
    """

    axis: int = 0
    segments: tuple[Segment, ...] = ()
    per: int = 1

    @property
    def partition_spec(self) -> PartitionSpec:
        """Partition spec of the global array."""
        return PartitionSpec(*[None] * self.axis, MODEL) if self.segments else REPLICATED

    def global_shape(self, shape: tuple[int, ...], num_shards: int) -> tuple[int, ...]:
        """Returns the shape of the global array, padding included, of a parameter of this shape."""
        count = num_shards * sum(segment.shard_size(num_shards) for segment in self.segments) // self.per
        return tuple(count if self.segments and axis == self.axis else n for axis, n in enumerate(shape))

    def splits_evenly(self, num_shards: int) -> bool:
        """Returns whether each shard begins between two of the array's rows or columns."""
        return all(segment.shard_size(num_shards) % self.per == 0 for segment in self.segments)

    def shard(self, whole: HostArray, index: int, num_shards: int) -> HostArray:
        """Returns the part of a parameter that shard `index` holds."""
        if not self.segments:
            return whole
        parts, start = [], 0
        for segment in self.segments:
            size = segment.shard_size(num_shards)
            first = min(index * size, segment.size) if segment.is_sharded(num_shards) else 0
            part = start + first, start + min(first + size, segment.size), size
            parts.append(self._padded_slice(whole, *(count // self.per for count in part)))
            start += segment.size
        return parts[0] if len(parts) == 1 else np.concatenate(parts, self.axis)

    def _padded_slice(self, whole: HostArray, start: int, stop: int, size: int) -> HostArray:
        """Returns `start` to `stop` along the axis, padded with zeros to `size`."""
        part = whole[(slice(None),) * self.axis + (slice(start, stop),)]
        missing = size - (stop - start)
        widths = [(0, missing if axis == self.axis else 0) for axis in range(whole.ndim)]
        return np.pad(part, widths) if missing else part
