"""Sizes of the device mesh, and the hosts that its devices belong to."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from .errors import ConfigError

DATA: Final = "data"
"""Mesh axis along which slots are sharded."""

MODEL: Final = "model"
"""Mesh axis along which matrices are sharded."""


@dataclass(frozen=True, slots=True)
class MeshShape:
    """Sizes of the mesh's axes.

    Attributes:
      data: Number of groups of devices, each with its own slots.
      model: Number of devices in a group, over which every matrix is sharded.
    """

    data: int = 1
    model: int = 1

    @property
    def count(self) -> int:
        """Number of devices."""
        return self.data * self.model


ONE_DEVICE: Final = MeshShape()


@dataclass(frozen=True, slots=True)
class HostGroup:
    """Processes that serve one model together.

    Attributes:
      leader: Name or address of the first host.
      port: Port on which hosts find each other; the leader also takes the next one.
      index: Index of this host; 0 leads.
    """

    leader: str
    port: int
    count: int
    index: int

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ConfigError(f"num_hosts must be at least 2 with a coordinator, got {self.count}")
        if not 0 <= self.index < self.count:
            raise ConfigError(f"host_index must be from 0 to {self.count - 1}, not {self.index}")

    @property
    def is_leader(self) -> bool:
        """Whether this host serves and decides."""
        return self.index == 0


def slot_order(slots: int, rows: int, data: int, model: int) -> tuple[int, ...]:
    """Returns the order in which slots are claimed, so that slots in use are spread evenly over the devices.

    Rows are in `data` times `model` consecutive blocks of equal size. Slots are spread over `data` first, then over
    `model`.

    Args:
      slots: Number of rows that are slots; the other rows are padding.
      rows: Number of rows of the state pool.
      data: Size of the mesh's data axis.
      model: Size of the mesh's model axis.
    """
    shards = data * model
    block = rows // shards
    return tuple((i % data * model + i % shards // data) * block + i // shards for i in range(slots))


def decode_places(slots: Sequence[int], sizes: Iterable[int], rows: int, devices: int) -> tuple[int, tuple[int, ...]]:
    """Returns the number of rows of the smallest decode step that includes the given slots, and their rows in it.

    A step has the same number of first slots of each device, one device after the other.

    Args:
      slots: The slots; at least one.
      sizes: Numbers of rows of the decode steps, in rising order; the last one has all slots.
      rows: Number of rows of the state pool.
      devices: Number of devices; each holds a block of slots of equal size.
    """
    block = rows // devices
    least = devices * (1 + max(slot % block for slot in slots))
    size = next(size for size in sizes if size >= least)
    return size, tuple(slot // block * (size // devices) + slot % block for slot in slots)
