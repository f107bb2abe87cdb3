"""Gradients of the RG-LRU on every backend, in float32, against finite differences of the float64 oracle."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreted import KERNELS, compiled
from roost.kernels.rg_lru import rg_lru
from roost.kernels.rg_lru.gradient import Scan
from roost.kernels.rg_lru.reference import rg_lru_reference
from roost.kernels.rg_lru.sequential import MAX_SQRT_GRADIENT, bounded_sqrt

E = 3
SCANS: dict[str, Scan] = {"xla": rg_lru} | {name: kernels.scan_with_gradient for name, kernels in KERNELS.items()}
ARGUMENTS = ("x", "input_gate", "recurrence_gate", "log_decay", "h0")
POSITIONS = {
    "a document's beginning": [[0, 1, 2, 3, 4]],
    "a chunk in its middle": [[7, 8, 9, 10, 11]],
    "a document begins in a row": [[3, 4, 0, 1, 2], [0, 0, 1, 0, 1]],
    "padding": [[5, 6, -1, -1, -1], [0, 1, 2, 0, -1], [-1, -1, -1, -1, -1]],
    "one token": [[0], [4], [-1]],
}


def draw(positions: np.ndarray, seed: int) -> list[np.ndarray]:
    """Arguments of the kernel, in the order of `ARGUMENTS`."""
    rng = np.random.default_rng(seed)
    rows, steps = positions.shape
    x, input_gate, recurrence_gate = rng.normal(size=(3, rows, steps, E))
    return [x, input_gate, recurrence_gate, -rng.uniform(0.05, 2.0, E), rng.normal(size=(rows, E))]


def draw_cotangents(positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the outputs in a scalar; none for the outputs of padding, which mean nothing."""
    rng = np.random.default_rng([seed, 1])
    of_y = rng.normal(size=(*positions.shape, E)) * (positions >= 0)[..., None]
    return of_y, rng.normal(size=(len(positions), E))


def finite_differences(
    arguments: Sequence[np.ndarray], cotangents: tuple[np.ndarray, np.ndarray], positions: np.ndarray
) -> list[np.ndarray]:
    """The oracle's derivatives by every number of every argument."""

    def scalar(arguments: Sequence[np.ndarray]) -> float:
        y, last = rg_lru_reference(*arguments, positions)
        return float(np.sum(y * cotangents[0]) + np.sum(last * cotangents[1]))

    step = 1e-5
    gradients = []
    for number, argument in enumerate(arguments):
        gradient = np.zeros(argument.shape)
        for index in np.ndindex(argument.shape):
            values = []
            for sign in (1.0, -1.0):
                moved = argument.copy()
                moved[index] += sign * step
                values.append(scalar([*arguments[:number], moved, *arguments[number + 1 :]]))
            gradient[index] = (values[0] - values[1]) / (2 * step)
        gradients.append(gradient)
    return gradients


def gradients(
    scan: Scan, arguments: Sequence[np.ndarray], cotangents: Sequence[np.ndarray], positions: np.ndarray
) -> tuple[jax.Array, ...]:
    """By each of the arguments, of y and the last h weighted with the cotangents."""

    narrow = [[jnp.asarray(v, jnp.float32) for v in values] for values in (arguments, cotangents)]
    return _gradients(scan, narrow[0], tuple(narrow[1]), jnp.asarray(positions))


@partial(compiled, static_argnums=0)
def _gradients(
    scan: Scan, arguments: Sequence[jax.Array], cotangents: tuple[jax.Array, jax.Array], positions: jax.Array
) -> tuple[jax.Array, ...]:
    return jax.vjp(lambda *a: scan(*a, positions), *arguments)[1](cotangents)


@pytest.mark.parametrize("backend", SCANS)
@pytest.mark.parametrize("case", POSITIONS)
def test_gradients_are_those_of_the_equations(case: str, backend: str) -> None:
    positions = np.array(POSITIONS[case], np.int32)
    arguments, cotangents = draw(positions, 1), draw_cotangents(positions, 1)
    actual = gradients(SCANS[backend], arguments, cotangents, positions)
    expected = finite_differences(arguments, cotangents, positions)
    for name, one, other in zip(ARGUMENTS, actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("backend", KERNELS)
def test_gradients_over_many_steps_are_those_of_xla(backend: str) -> None:
    """Several blocks of time, on the grid of blocks and off it."""
    positions = np.stack([np.arange(3, 303), np.r_[np.arange(40), np.arange(200), np.full(60, -1)]]).astype(np.int32)
    arguments, cotangents = draw(positions, 4), draw_cotangents(positions, 4)
    both = (gradients(SCANS[name], arguments, cotangents, positions) for name in (backend, "xla"))
    for name, one, other in zip(ARGUMENTS, *both, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("backend", KERNELS)
def test_what_padding_holds_or_is_given_reaches_no_gradient(backend: str) -> None:
    """Not even NaN, of the inputs there or of a loss that nobody asked for."""
    positions = np.array(POSITIONS["padding"], np.int32)
    padding = (positions < 0)[..., None]
    arguments, cotangents = draw(positions, 5), draw_cotangents(positions, 5)
    dirty = [*(np.where(padding, np.nan, sequence) for sequence in arguments[:3]), *arguments[3:]]
    nonsense = (np.where(padding, np.nan, cotangents[0]), cotangents[1])
    both = (gradients(SCANS[backend], *inputs, positions) for inputs in ((arguments, cotangents), (dirty, nonsense)))
    for name, one, other in zip(ARGUMENTS, *both, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)
        assert np.isfinite(one).all()


@pytest.mark.parametrize("backend", SCANS)
def test_nothing_flows_back_over_a_document_s_beginning_or_out_of_padding(backend: str) -> None:
    positions = np.array([[6, 7, 0, 1, -1]], np.int32)
    of_second = np.broadcast_to((np.arange(5) >= 2)[:, None], (1, 5, E)) * (positions >= 0)[..., None]
    x, input_gate, recurrence_gate, _, h0 = gradients(
        SCANS[backend], draw(positions, 2), (of_second, np.ones((1, E))), positions
    )
    for gradient in (x, input_gate, recurrence_gate):
        assert not gradient[:, [0, 1, 4]].any()
    assert not h0.any()
    assert not recurrence_gate[:, 2].any()  # a is not used where a document begins
    assert x[:, 2:4].all()


def test_the_square_root_s_derivative_is_bounded() -> None:
    roots = jnp.array([0.0, 1e-12, 2.5e-7, 1e-6, 0.25, 1.0], jnp.float32)
    derivatives = jax.vmap(jax.grad(bounded_sqrt))(roots)
    np.testing.assert_array_equal(bounded_sqrt(roots), jnp.sqrt(roots))
    np.testing.assert_allclose(derivatives, [MAX_SQRT_GRADIENT] * 3 + [500.0, 1.0, 0.5], rtol=1e-5)


@pytest.mark.parametrize("backend", SCANS)
def test_gradients_stay_finite_where_nothing_decays(backend: str) -> None:
    """a = 1: the plain derivative of sqrt(1 - a^2) would be infinite there."""
    positions = np.array([[3, 4, 5, 6]], np.int32)
    x, input_gate, recurrence_gate, _, h0 = draw(positions, 3)
    arguments = (x, input_gate, recurrence_gate - 200.0, np.full(E, -1e-9), h0)
    ones = (np.ones(x.shape), np.zeros(h0.shape))
    assert all(np.isfinite(gradient).all() for gradient in gradients(SCANS[backend], arguments, ones, positions))
