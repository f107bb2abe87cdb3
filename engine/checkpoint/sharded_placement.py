"""Placement of a model's parameters on the devices of a mesh."""

from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from ...kernels.matrices import QuantizedMatrix
from ..model.config import ModelConfig
from ..model.segments import ShardingRule
from ..model.sharding_rules import leaf_rules
from ..types.arrays import HostArray
from ..types.mesh import MeshShape

type HostParam = HostArray | QuantizedMatrix
"""A parameter in host memory."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Places each shard of a parameter on its devices. A process places only the shards of its own devices.

    Attributes:
      mesh: The devices.
      config: The model's config.
      shape: Sizes of the mesh's axes.
    """

    mesh: Mesh
    config: ModelConfig
    shape: MeshShape

    def put(self, path: tuple[Any, ...], param: HostParam) -> Any:
        """Returns a parameter as an array sharded over the mesh.

        Args:
          path: Path of the parameter, as JAX's tree keys.
          param: The whole parameter.
        """
        return jax.tree.map(self._put, leaf_rules(path, param, self.config), param)

    def _put(self, rule: ShardingRule, whole: HostArray) -> jax.Array:
        shape = rule.global_shape(whole.shape, self.shape.model)

        def shard(index: tuple[slice, ...] | None) -> HostArray:
            assert index is not None
            start = (index[rule.axis].start or 0) if rule.segments else 0
            return rule.shard(whole, start * self.shape.model // shape[rule.axis], self.shape.model)

        return jax.make_array_from_callback(shape, NamedSharding(self.mesh, rule.partition_spec), shard)
