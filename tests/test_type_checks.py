"""Types and shapes are checked in tests, in functions of every call too."""

import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float, TypeCheckError, jaxtyped
from roost.engine.sampling.sampler import logprobs
from roost.kernels.arithmetic import max_last
from type_checks import check


def define(kind: Any, default: Any = 0) -> Callable[..., Any]:
    """The same `def` anew, with a type that may be another."""

    @jaxtyped(typechecker=check)
    def inner(x: kind, y: Any = default) -> kind:
        return y if y else x

    return inner


def test_roosts_functions_are_checked() -> None:
    with pytest.raises(TypeCheckError):
        logprobs(jnp.zeros((2, 8)), jnp.zeros(3, jnp.int32), jnp.zeros((2, 0), jnp.int32))
    with pytest.raises(TypeCheckError):
        max_last([1.0])  # type: ignore[arg-type]


def test_all_modules_with_shapes_are_checked(pytestconfig: pytest.Config) -> None:
    """Other modules are left out: a check takes longer than most of the scheduler's functions."""
    root = pytestconfig.rootpath
    *packages, _ = pytestconfig.getoption("jaxtyping_packages").split(",")
    for path in (each for room in ("engine", "kernels", "server") for each in (root / room).rglob("*.py")):
        module = ".".join(("roost", *path.relative_to(root).with_suffix("").parts))
        if re.search(r"^from jaxtyping import", path.read_text(), re.MULTILINE):
            assert any(f"{module}.".startswith(f"{package}.") for package in packages), module


def test_each_time_a_function_is_defined() -> None:
    for number in range(3):
        inner = define(int)
        assert inner(number) == number
        with pytest.raises(TypeCheckError):
            inner("a")
        with pytest.raises(TypeCheckError):
            inner(1, "a")  # what it returns


def test_by_its_own_types() -> None:
    assert define(int)(1) == 1
    assert define(str)("a") == "a"
    with pytest.raises(TypeCheckError):
        define(str)(1)
    with pytest.raises(TypeCheckError):
        define(int)("a")


def test_what_it_does_and_its_defaults_are_its_own() -> None:
    assert [define(int, default)(1) for default in (0, 5, 6)] == [1, 5, 6]
    assert define(Any, [])(7) == 7  # which has no hash


def test_shapes_hold_together_within_a_call() -> None:
    for _ in range(2):

        @jaxtyped(typechecker=check)
        def pair(x: Float[Array, " N"], y: Float[Array, " N"]) -> None:
            del x, y

        pair(jnp.zeros(3), jnp.zeros(3))
        pair(jnp.zeros(2), jnp.zeros(2))
        with pytest.raises(TypeCheckError):
            pair(jnp.zeros(3), jnp.zeros(2))
