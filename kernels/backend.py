"""Backends: for each op, the kernels that compute it, and the one way to choose between them."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

NATIVE: Final = "native"
"""Name of all native kernels together."""


def takes_all(*arguments: Any) -> bool:
    """Returns that a kernel computes its op for any arguments."""
    return True


@dataclass(frozen=True, slots=True)
class Kernel:
    """Implementation of an op for a backend.

    Attributes:
      op: Name of the op: that of its entry, a function of one of the packages in `roost.kernels`.
      names: Names that it has in compiled programs, and by which it can be left out. A kernel without a name is written
        in JAX, and stays.
      run: Computes the op from the arguments that the entry dispatches.
      takes: Returns whether `run` supports these arguments, by their types, shapes and dtypes.
    """

    op: str
    names: tuple[str, ...]
    run: Callable[..., Any] = field(repr=False)  # a function's address differs between processes, as no key may
    takes: Callable[..., bool] = field(default=takes_all, repr=False)


@dataclass(frozen=True, slots=True)
class Backend:
    """Kernels of a backend, one row of `roost.kernels.backends`.

    Attributes:
      name: Name of the backend.
      kernels: Kernels in the order in which they are tried; XLA computes the ops, and the arguments, that they leave.
      sampled_rows: Maximum number of rows that XLA samples at a time, since it keeps several copies of their logits;
        None for all rows.
    """

    name: str
    kernels: tuple[Kernel, ...] = ()
    sampled_rows: int | None = None

    def dispatch[Result](self, op: str, xla: Callable[..., Result], *arguments: Any) -> Result:
        """Computes an op with the first kernel that takes the arguments, or else with XLA.

        Args:
          op: Name of the op.
          xla: Implementation for any backend and any arguments.
          *arguments: Arguments of every implementation. A kernel looks at their types, shapes and dtypes, in tracing.
        """
        kernel = next((each for each in self.kernels if each.op == op and each.takes(*arguments)), None)
        return xla(*arguments) if kernel is None else kernel.run(*arguments)

    @property
    def packs_weights(self) -> bool:
        """Whether weights are packed when they are loaded; see `roost.kernels.matrices.packed`."""
        return NATIVE in self.names

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its kernels in compiled programs; all that is native counts as one."""
        return tuple(dict.fromkeys(name for kernel in self.kernels for name in kernel.names))

    def only(self, name: str) -> "Backend":
        """Returns the backend with the kernels of one name, and XLA for the rest; `XLA` if none has that name."""
        if name not in self.names:
            return XLA
        return replace(self, kernels=tuple(each for each in self.kernels if not each.names or name in each.names))

    def without(self, names: Collection[str]) -> "Backend":
        """Returns the backend without the kernels of these names; `XLA` if it lacks one of the names."""
        rest = tuple(each for each in self.kernels if not {*names} & {*each.names})
        return replace(self, kernels=rest) if rest and set(names) <= set(self.names) else XLA


class GpuSizes(NamedTuple):
    """Sizes of a GPU that decide on the blocks of its kernels.

    Attributes:
      block_memory: Bytes of shared memory that a block of threads may have.
      multiprocessors: Number of multiprocessors.
    """

    block_memory: int
    multiprocessors: int


XLA: Final = Backend("xla")
"""XLA on every platform. On CPUs the split of a batch or a prompt changes no bit of the results."""
