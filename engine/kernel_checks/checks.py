"""Checks: each kernel of a platform alone, XLA computing the rest, against XLA in float32 on the CPU.

A kernel may be a few times as far from the reference as XLA is in the kernel's own dtype, since both round as often.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from ...kernels import XLA
from ..checkpoint.source import ModelSource
from ..devices.platform import PORTABLE, Platform, choose_platform
from ..devices.startup import configure_jax
from ..model.griffin import Params, abstract_model
from ..types.config import ONE_DEVICE, EngineConfig
from ..worker.served import Devices, open_weights
from ..worker.steps import Graph
from .sampling import TOKEN_CHECKS, TokenCheck
from .steps import Outputs, Step, StepInputs, StepShape, as_float32, draw_inputs, live, shallow

_MARGIN: Final = 3.0
"""Maximum ratio of a kernel's distance from the reference to XLA's."""

_LEAST: Final = {"float32": 1e-5, "bfloat16": 2**-9}
"""Relative distance that is allowed by dtype if XLA's is smaller: some roundings of float32, or one of bfloat16."""

MAX_ROWS: Final = 128
"""Maximum rows of a step or of the sampler."""

_STEPS: Final[Mapping[str, tuple[str, ...]]] = {
    "rg_lru": ("prefill",),
    "window_attention_decode": ("decode",),
    "window_attention_prefill": ("prefill",),
    "recurrent_step": ("decode",),
    "recurrent_chunk": ("prefill",),
    "gated_mlp": ("decode",),
    "int8_product": ("decode", "prefill"),
    "int8_gated_mlp": ("decode",),
    "native": ("decode", "prefill"),
}
"""Steps that use a kernel."""

_NUMBERS: Final[Mapping[str, tuple[bool, ...]]] = {
    "rg_lru": (False,),
    "recurrent_step": (False,),
    "recurrent_chunk": (False,),
    "gated_mlp": (False,),
    "int8_product": (True,),
    "int8_gated_mlp": (True,),
}
"""Whether a kernel is checked with matrices and windows in int8; the others are with and without."""


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
    """Result of a kernel in one step.

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
      source: Model whose widths, window and dtype the checks have. Weights are drawn.
      report: Called with the name of each kernel before its checks.
    """
    for is_int8 in (False, True):
        model = _CheckedModel(*checked_model(source, settings, is_int8=is_int8), platform)
        for kernel in kernels_of(platform, is_int8=is_int8):
            report(f"{kernel}, {model.numbers}")
            for shape in shapes(kernel, settings, platform):
                yield model.check(kernel, shape)
    for check in TOKEN_CHECKS:
        if check.kernel in platform.kernels.names:
            report(f"{check.kernel}, {check.numbers}")
            yield _checked(check, source, platform)


def kernels_of(platform: Platform, *, is_int8: bool) -> list[str]:
    """Returns the kernels that are checked with or without matrices and windows in int8; "xla" if there are none."""
    choosing = {check.kernel for check in TOKEN_CHECKS}
    names = [name for name in platform.kernels.names if name not in choosing] or ["xla"]
    return [name for name in names if is_int8 in _NUMBERS.get(name, (False, True))]


def shapes(kernel: str, settings: EngineConfig, platform: Platform) -> list[StepShape]:
    """Returns the sizes of the steps in which a kernel is checked."""
    rows = [rows for rows in platform.decode_rows if rows <= MAX_ROWS] or [8]
    decode = [StepShape(count, 1) for count in dict.fromkeys((rows[0], rows[-1]))]
    prompts = [StepShape(count, settings.prefill_chunk) for count in dict.fromkeys((1, min(4, platform.prefill_rows)))]
    return [shape for shape in (*decode, *prompts) if _name(shape) in _STEPS.get(kernel, ("decode", "prefill"))]


def _name(shape: StepShape) -> str:
    return "decode" if shape.is_decode else "prefill"


def checked_model(source: ModelSource, settings: EngineConfig, *, is_int8: bool) -> tuple[ModelSource, EngineConfig]:
    """Returns a model with one layer of each kind and random weights, and its settings."""
    dtype = source.config.dtype if settings.dtype == "auto" else settings.dtype
    numbers = "int8" if is_int8 else None
    whole = replace(source, config=replace(shallow(source.config), quantize=None), weights=()).with_kv_dtype(numbers)
    return whole, replace(settings, dtype=dtype, quantize=numbers, kv_dtype=numbers)


class _CheckedModel:
    """A model in some precision, with its reference.

    Attributes:
      numbers: Dtype, and the arrays in int8.
    """

    def __init__(self, source: ModelSource, config: EngineConfig, platform: Platform) -> None:
        self._source = source
        self._config = config
        self._platform = platform
        self._runners: dict[str, Callable[..., Outputs]] = {}
        self._references: dict[StepShape, Outputs] = {}
        self._baselines: dict[StepShape, Mapping[str, Distance]] = {}
        self.numbers = config.dtype + (", weights and windows in int8" if config.quantize else "")

    def check(self, kernel: str, shape: StepShape) -> KernelCheck:
        """Runs a kernel in a step: twice, and once with NaN where nothing may be read."""
        found = KernelCheck(kernel, _name(shape), shape, self.numbers)
        try:
            run = self._runner(kernel)
            first, second, closed = run(shape), run(shape), run(shape, broken=True)
        except Exception as error:  # of the compiler, the runtime or the kernel: the other kernels are checked still
            return replace(found, failure=first_line(error))
        distances = _distances(first, self._reference(shape))
        allowed = {name: self._allowed(shape, name) for name in distances}
        worst = max(distances, key=lambda name: _ratio(distances[name].relative, allowed[name]))
        return replace(
            found,
            distance=Distance(max(each.largest for each in distances.values()), distances[worst].relative),
            allowed=allowed[worst],
            num_unequal=_num_unequal(first, second),
            is_closed=not _num_unequal(first, closed),
        )

    def _allowed(self, shape: StepShape, name: str) -> float:
        if shape not in self._baselines:
            self._baselines[shape] = _distances(self._runner("xla")(shape), self._reference(shape))
        return max(_MARGIN * self._baselines[shape][name].relative, _LEAST[self._config.dtype])

    def _reference(self, shape: StepShape) -> Outputs:
        if shape not in self._references:
            with jax.default_device(jax.devices("cpu")[0]):
                params, inputs = self._wide_params, draw_inputs(self._source.config, shape, self._dtype)
                step = Step(self._wide_graph, PORTABLE, self._source.config.window)
                outputs = jax.jit(step.run)(params, as_float32(inputs))
                self._references[shape] = live(outputs, inputs.positions)
        return self._references[shape]

    def _runner(self, kernel: str) -> Callable[..., Outputs]:
        if kernel not in self._runners:
            self._runners[kernel] = self._open_runner(kernel)
        return self._runners[kernel]

    def _open_runner(self, kernel: str) -> Callable[..., Outputs]:
        platform = replace(self._platform, kernels=self._platform.kernels.only(kernel))
        graph, params = self._load(platform)
        step = jax.jit(Step(graph, platform, self._source.config.window).run)

        def run(shape: StepShape, *, broken: bool = False) -> Outputs:
            inputs: StepInputs = draw_inputs(self._source.config, shape, self._dtype, broken=broken)
            return live(step(params, inputs), inputs.positions)

        return run

    def _load(self, platform: Platform) -> tuple[Graph, Params]:
        """Returns a model's code and weights, which only native kernels have in another form."""
        with open_weights(self._source, self._config, Devices(platform)) as weights:
            if not platform.kernels.packs_weights:
                return weights.served.graph, self._plain_params
            return weights.served.graph, weights.read(lambda done, total: None)

    @cached_property
    def _plain_params(self) -> Params:
        platform = replace(self._platform, kernels=XLA)
        with open_weights(self._source, self._config, Devices(platform)) as weights:
            return weights.read(lambda done, total: None)

    @property
    def _dtype(self) -> np.dtype[Any]:
        return jnp.dtype(self._config.dtype)

    @property
    def _wide_graph(self) -> Graph:
        matrices = jnp.dtype("int8") if self._config.quantize else None
        return abstract_model(self._source.config, jnp.dtype("float32"), PORTABLE, matrices)[0]

    @cached_property
    def _wide_params(self) -> Params:
        """The same weights, of which matrices in int8 stay as they are, in float32 on the CPU."""
        cpu = jax.devices("cpu")[0]

        def widen(x: Any) -> Any:
            return jax.device_put(x if x.dtype == jnp.int8 else np.asarray(x.astype(jnp.float32)), cpu)

        return jax.tree.map(widen, self._plain_params)


def _distances(outputs: Outputs, reference: Outputs) -> dict[str, Distance]:
    return {name: _distance(outputs[name], reference[name]) for name in reference}


def _distance(actual: np.ndarray, expected: np.ndarray) -> Distance:
    difference = np.asarray(actual, np.float64) - expected
    size = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))
    error = float(np.sqrt(np.mean(np.square(difference))))
    return Distance(float(np.max(np.abs(difference))), error / size if size else error)


def _ratio(relative: float, allowed: float) -> float:
    return np.inf if np.isnan(relative) else relative / allowed


def _num_unequal(first: Outputs, second: Outputs) -> int:
    return sum(int(np.sum(first[name].view(np.int32) != second[name].view(np.int32))) for name in first)


def first_line(error: Exception) -> str:
    """Returns an error's class and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def _checked(check: TokenCheck, source: ModelSource, platform: Platform) -> KernelCheck:
    found = KernelCheck(check.kernel, "sample", StepShape(MAX_ROWS, 1), check.numbers)
    try:
        distance, num_unequal = check.run(source.config, MAX_ROWS, platform.kernels)
    except Exception as error:  # as above
        return replace(found, failure=first_line(error))
    return replace(found, distance=Distance(distance, distance), allowed=check.allowed, num_unequal=num_unequal)
