"""Arguments and results of recurrent blocks."""

from typing import NamedTuple

from jaxtyping import Array, Float, Float32, Int32

from ..matrices import PackedGates


class RecurrentWeights(NamedTuple):
    """Weights of a recurrent block between its projections.

    Attributes:
      conv_weight: Taps; see `causal_conv1d`.
      conv_bias: Bias of the convolution.
      gate_weight: Weights of the N diagonal gate blocks, the input gate's columns first; or these, packed.
      gate_bias: Biases of the gates.
      a_param: Λ of the RG-LRU.
    """

    conv_weight: Float32[Array, "K E"]
    conv_bias: Float32[Array, " E"]
    gate_weight: Float[Array, "N e e2"] | PackedGates
    gate_bias: Float32[Array, "N e2"]
    a_param: Float32[Array, " E"]

    @property
    def gate_block(self) -> int:
        """Number of channels of a gate block."""
        size: int = self.gate_bias.shape[1] // 2
        return size


class RecurrentInputs(NamedTuple):
    """Everything that a recurrent block reads but its input projections; see `recurrent_block`.

    Attributes:
      weights: Weights of the block.
      conv: State of the convolution.
      h: State of the RG-LRU.
      positions: Positions of the tokens, `[B, T]`; `[B]` for kernels of a single step.
    """

    weights: RecurrentWeights
    conv: Float[Array, "K1 P E"]
    h: Float32[Array, "P E"]
    positions: Int32[Array, "*tokens"]

    @property
    def of_step(self) -> "RecurrentInputs":
        """The inputs of a single step without the axis of time."""
        return self._replace(positions=self.positions[:, 0])


class Recurrence(NamedTuple):
    """Results of a recurrent block between its projections.

    Attributes:
      mixed: Inputs of the output projection, `[B, T, E]`; without the axis of time from kernels of a single step.
      conv: New state of the convolution.
      h: New state of the RG-LRU.
      kept_conv: State of the convolution after every `every` steps, of which there are M; None for a single step.
      kept_h: State of the RG-LRU likewise.
    """

    mixed: Float[Array, "*tokens E"]
    conv: Float[Array, "K1 P E"]
    h: Float32[Array, "P E"]
    kept_conv: Float[Array, "B M K1 E"] | None = None
    kept_h: Float32[Array, "B M E"] | None = None
