"""Checks: each kernel of a platform in the ops that it computes, against XLA in float32 on the CPU, at served shapes.

A kernel may be a few times as far from the reference as XLA is in the kernel's own dtype, since both round as often.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np

from ...kernels.matrices import is_quantized, pack_param
from ..checkpoint.source import ModelSource
from ..devices.platform import PORTABLE, Platform, choose_platform, configure_jax
from ..model.config import ModelConfig
from ..types.config import ONE_DEVICE, EngineConfig
from .ops import OPS, TOKEN_CHECKS, Draw, Op, Results, StepShape, TokenCheck

_MARGIN: Final = 3.0
"""Maximum ratio of a kernel's distance from the reference to XLA's."""

_LEAST: Final = {"float32": 1e-5, "bfloat16": 2**-9}
"""Relative distance that is allowed by dtype if XLA's is smaller: some roundings of float32, or one of bfloat16."""

MAX_ROWS: Final = 128
"""Maximum rows of a step or of the sampler."""

_STEPS: Final[Mapping[str, tuple[str, ...]]] = {
    "recurrent_step": ("decode",),
    "recurrent_chunk": ("prefill",),
    "rg_lru": ("prefill",),
}
"""Steps that use a kernel, if they are only part of its op's steps."""

_NUMBERS: Final[Mapping[str, tuple[bool, ...]]] = {
    "gated_mlp": (False,),
    "int8_gated_mlp": (True,),
    "int8_product": (True,),
}
"""Whether a kernel is checked with matrices and windows in int8; the others are as their ops allow."""

type Outputs = Mapping[str, np.ndarray]
"""Results of a kernel's ops in float32, by name, of the rows that aren't idle and of tokens that aren't padding."""


@dataclass(frozen=True, slots=True)
class Distance:
    """How far results are from the reference.

    Attributes:
      largest: Largest difference of an element.
      relative: Root mean square of the differences, by that of the reference; of the worst part of the results.
    """

    largest: float
    relative: float


@dataclass(frozen=True, slots=True)
class KernelCheck:
    """Result of a kernel in the ops that it computes in a step.

    Attributes:
      kernel: Name of the kernel, as `Backend.without` takes it.
      step: "decode", "prefill" or "sample".
      shape: Rows and tokens.
      numbers: Dtype, and the arrays in int8.
      distance: Distance from the reference; None if the step could not run.
      allowed: Relative distance that is allowed.
      num_unequal: Number of elements with other bits in a second run, which races cause.
      is_closed: Whether NaN in idle rows, and large numbers in padding, change no bit of the other tokens.
      failure: Why the step could not run; None if it could.
    """

    kernel: str
    step: str
    shape: StepShape
    numbers: str
    distance: Distance | None = None
    allowed: float = 0.0
    num_unequal: int = 0
    is_closed: bool = True
    failure: str | None = None

    @property
    def is_right(self) -> bool:
        """Whether the kernel may be used."""
        if self.distance is None or not self.distance.relative <= self.allowed:  # NaN is not
            return False
        return not self.num_unequal and self.is_closed


def check_kernels(source: ModelSource, settings: EngineConfig, report: Callable[[str], None]) -> Iterator[KernelCheck]:
    """Yields the checks of the kernels that a start would use on JAX's default device; see `checks_on`."""
    configure_jax(settings.compile_cache)
    yield from checks_on(choose_platform(ONE_DEVICE, settings.without_kernels), source, settings, report)


def checks_on(
    platform: Platform, source: ModelSource, settings: EngineConfig, report: Callable[[str], None]
) -> Iterator[KernelCheck]:
    """Yields the check of every kernel in every step that uses it; of XLA itself if the platform has no kernels.

    Args:
      platform: Platform of JAX's default device.
      source: Model whose widths, window and dtype the checks have.
      report: Called with the name of each kernel before its checks.
    """
    dtype = source.config.dtype if settings.dtype == "auto" else settings.dtype
    for is_int8 in (False, True):
        checks = _Checks(source.config, dtype, platform, is_int8=is_int8)
        for kernel, shapes in _kernels(checks, settings):
            report(f"{kernel}, {checks.numbers}")
            for shape in shapes:
                yield checks.check(kernel, shape)
    for check in TOKEN_CHECKS:
        if check.kernel in platform.kernels.names:
            report(f"{check.kernel}, {check.numbers}")
            yield _checked(check, source, platform)


def _kernels(checks: "_Checks", settings: EngineConfig) -> Iterator[tuple[str, list[StepShape]]]:
    """Yields the kernels that are checked in these numbers, and the sizes of their steps; "xla" if there are none."""
    platform, choosing = checks.platform, {check.kernel for check in TOKEN_CHECKS}
    rows = [rows for rows in platform.sizes.decode_rows if rows <= MAX_ROWS] or [8]
    decode = [StepShape(count, 1) for count in dict.fromkeys((rows[0], rows[-1]))]
    prompts = [StepShape(count, settings.prefill_chunk) for count in dict.fromkeys((1, min(4, platform.prefill_rows)))]
    for name in [name for name in platform.kernels.names if name not in choosing] or ["xla"]:
        shapes = [shape for shape in (*decode, *prompts) if checks.ops(name, shape.step)]
        if shapes:
            yield name, shapes


class _Checks:
    """Ops of a model in some numbers.

    Attributes:
      platform: Platform whose kernels are checked.
      numbers: Dtype, and the arrays in int8.
    """

    def __init__(self, model: ModelConfig, dtype: str, platform: Platform, *, is_int8: bool) -> None:
        self.platform = platform
        self.numbers = dtype + (", weights and windows in int8" if is_int8 else "")
        self._model, self._dtype, self._is_int8 = model, dtype, is_int8
        self._compiled: dict[tuple[str, str], Callable[..., Results]] = {}
        self._expected: dict[tuple[str, StepShape], tuple[Outputs, Mapping[str, Distance]]] = {}

    def ops(self, kernel: str, step: str) -> list[Op]:
        """Returns the ops that a kernel computes in a step; all of them for "xla"."""
        if self._is_int8 not in _NUMBERS.get(kernel, (False, True)) or step not in _STEPS.get(kernel, (step,)):
            return []
        own = {each.op for each in self.platform.kernels.kernels if kernel in each.names}
        layers = (None, *self._model.block_types)
        found = [op for op in OPS if step in op.steps and op.layer in layers and (op.has_int8 or not self._is_int8)]
        return [op for op in found if kernel == "xla" or not own.isdisjoint((op.name, op.part))]

    def check(self, kernel: str, shape: StepShape) -> KernelCheck:
        """Runs a kernel's ops: twice, and once with NaN where nothing may be read."""
        found, ops = KernelCheck(kernel, shape.step, shape, self.numbers), self.ops(kernel, shape.step)
        try:
            first, second = (self._outputs(kernel, ops, shape) for _ in range(2))
            closed = self._outputs(kernel, ops, shape, broken=True)
            distances: dict[str, Distance] = {}
            allowed: dict[str, float] = {}
            for op in ops:
                expected, baseline = self._reference(op, shape)
                distances |= _distances(first, expected)
                allowed |= {name: max(_MARGIN * baseline[name].relative, _LEAST[self._dtype]) for name in expected}
        except Exception as error:  # of the compiler, the runtime or the kernel: the other kernels are checked still
            return replace(found, failure=_first_line(error))
        worst = max(distances, key=lambda name: np.nan_to_num(distances[name].relative / allowed[name], nan=np.inf))
        return replace(
            found,
            distance=Distance(max(each.largest for each in distances.values()), distances[worst].relative),
            allowed=allowed[worst],
            num_unequal=_num_unequal(first, second),
            is_closed=not _num_unequal(first, closed),
        )

    def _reference(self, op: Op, shape: StepShape) -> tuple[Outputs, Mapping[str, Distance]]:
        """Returns an op's results in float32, and how far XLA's are from them."""
        if (op.name, shape) not in self._expected:
            weights, inputs = jax.tree.map(_widened, op.draw(self._draw(self.platform, shape)))
            with jax.default_device(jax.devices("cpu")[0]):
                results = jax.jit(partial(op.run, PORTABLE))(*weights, *inputs)
                expected = _live(op, results, self._draw(self.platform, shape).positions)
            baseline = _distances(self._outputs("xla", [op], shape), expected)
            self._expected[op.name, shape] = expected, baseline
        return self._expected[op.name, shape]

    def _outputs(self, kernel: str, ops: Iterable[Op], shape: StepShape, *, broken: bool = False) -> Outputs:
        """Returns the results of ops with one kernel, XLA computing the rest."""
        on = replace(self.platform, kernels=self.platform.kernels.only(kernel))
        found: dict[str, np.ndarray] = {}
        for op in ops:
            draw = self._draw(on, shape, broken=broken)
            weights, inputs = op.draw(draw)
            if on.kernels.packs_weights:
                weights = jax.tree.map(pack_param, weights, is_leaf=is_quantized)
            run = self._compiled.setdefault((kernel, op.name), jax.jit(partial(op.run, on)))
            found |= _live(op, run(*weights, *inputs), draw.positions)
        return found

    def _draw(self, on: Platform, shape: StepShape, *, broken: bool = False) -> Draw:
        dtypes = jnp.dtype(self._dtype), jnp.dtype(on.gate_dtype or self._dtype)
        return Draw(self._model, shape, *dtypes, self._is_int8, broken)


def _widened(x: np.ndarray) -> np.ndarray:
    return x if x.dtype.kind in "iu" else x.astype(np.float32)


def _live(op: Op, results: Results, positions: np.ndarray) -> Outputs:
    """Returns an op's results on the host, without idle rows and padding."""
    valid = positions >= 0
    parts = ((results.tokens, valid), (results.rows, valid[:, 0]))
    return {
        f"{op.name}: {name}": np.asarray(x.astype(jnp.float32))[at] for part, at in parts for name, x in part.items()
    }


def _distances(outputs: Outputs, reference: Outputs) -> dict[str, Distance]:
    return {name: _distance(outputs[name], reference[name]) for name in reference}


def _distance(actual: np.ndarray, expected: np.ndarray) -> Distance:
    difference = np.asarray(actual, np.float64) - expected
    size = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))
    error = float(np.sqrt(np.mean(np.square(difference))))
    return Distance(float(np.max(np.abs(difference))), error / size if size else error)


def _num_unequal(first: Outputs, second: Outputs) -> int:
    return sum(int(np.sum(first[name].view(np.int32) != second[name].view(np.int32))) for name in first)


def _first_line(error: Exception) -> str:
    """Returns an error's class and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def _checked(check: TokenCheck, source: ModelSource, platform: Platform) -> KernelCheck:
    found = KernelCheck(check.kernel, "sample", StepShape(MAX_ROWS, 1), check.numbers)
    try:
        distance, num_unequal = check.run(source.config, MAX_ROWS, platform.kernels)
    except Exception as error:  # as above
        return replace(found, failure=_first_line(error))
    return replace(found, distance=Distance(distance, distance), allowed=check.allowed, num_unequal=num_unequal)
