"""Gradients of the RG-LRU in float32, against finite differences of the float64 oracle."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from roost.kernels.recurrent_block.xla import MAX_SQRT_GRADIENT, bounded_sqrt, rg_lru
from roost.kernels.references import rg_lru_reference

E = 3
ARGUMENTS = ("x", "input_gate", "recurrence_gate", "log_decay", "h0")
POSITIONS = {
    "a document's beginning": [[0, 1, 2, 3, 4]],
    "a chunk in its middle": [[7, 8, 9, 10, 11]],
    "a document begins in a row": [[3, 4, 0, 1, 2], [0, 0, 1, 0, 1]],
    "padding": [[5, 6, -1, -1, -1], [0, 1, 2, 0, -1], [-1, -1, -1, -1, -1]],
    "one token": [[0], [4], [-1]],
}


def draw(positions: np.ndarray, seed: int) -> list[np.ndarray]:
    """Returns arguments of the scan, in the order of `ARGUMENTS`."""
    rng = np.random.default_rng(seed)
    rows, steps = positions.shape
    x, input_gate, recurrence_gate = rng.normal(size=(3, rows, steps, E))
    return [x, input_gate, recurrence_gate, -rng.uniform(0.05, 2.0, E), rng.normal(size=(rows, E))]


def draw_cotangents(positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns cotangents of the outputs; those of padding are zero, because its outputs are undefined."""
    rng = np.random.default_rng([seed, 1])
    of_y = rng.normal(size=(*positions.shape, E)) * (positions >= 0)[..., None]
    return of_y, rng.normal(size=(len(positions), E))


def finite_differences(
    arguments: Sequence[np.ndarray], cotangents: tuple[np.ndarray, np.ndarray], positions: np.ndarray
) -> list[np.ndarray]:
    """Returns the oracle's derivatives with respect to every element of every argument."""

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
    arguments: Sequence[np.ndarray], cotangents: Sequence[np.ndarray], positions: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Returns the gradients with respect to each argument, of y and the last h weighted with the cotangents."""
    narrow = [[v.astype(np.float32) for v in values] for values in (arguments, cotangents)]
    return jax.tree.map(np.asarray, _gradients(narrow[0], tuple(narrow[1]), positions))


@jax.jit
def _gradients(
    arguments: Sequence[jax.Array], cotangents: tuple[jax.Array, jax.Array], positions: jax.Array
) -> tuple[jax.Array, ...]:
    return jax.vjp(lambda *a: rg_lru(*a, positions), *arguments)[1](cotangents)


@pytest.mark.parametrize("case", POSITIONS)
def test_gradients_are_those_of_the_equations(case: str) -> None:
    positions = np.array(POSITIONS[case], np.int32)
    arguments, cotangents = draw(positions, 1), draw_cotangents(positions, 1)
    actual = gradients(arguments, cotangents, positions)
    expected = finite_differences(arguments, cotangents, positions)
    for name, one, other in zip(ARGUMENTS, actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5, err_msg=name)


def test_nothing_flows_back_over_a_document_s_beginning_or_out_of_padding() -> None:
    positions = np.array([[6, 7, 0, 1, -1]], np.int32)
    of_second = np.broadcast_to((np.arange(5) >= 2)[:, None], (1, 5, E)) * (positions >= 0)[..., None]
    x, input_gate, recurrence_gate, _, h0 = gradients(draw(positions, 2), (of_second, np.ones((1, E))), positions)
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


def test_gradients_stay_finite_where_nothing_decays() -> None:
    """a = 1: the plain derivative of sqrt(1 - a^2) would be infinite there."""
    positions = np.array([[3, 4, 5, 6]], np.int32)
    x, input_gate, recurrence_gate, _, h0 = draw(positions, 3)
    arguments = (x, input_gate, recurrence_gate - 200.0, np.full(E, -1e-9), h0)
    ones = (np.ones(x.shape), np.zeros(h0.shape))
    assert all(np.isfinite(gradient).all() for gradient in gradients(arguments, ones, positions))
