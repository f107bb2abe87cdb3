"""The wheel's build step: which wheel has the native kernels, and for which Pythons it is."""

import sysconfig

import pytest
from roost.kernels.native.build import BuildWheel
from setuptools import Distribution, Extension


@pytest.mark.parametrize(
    ("pure", "free_threaded", "has_kernels", "limited_api"),
    [(False, False, True, "cp312"), (True, False, False, "cp312"), (False, True, True, False)],
    ids=["native", "pure", "free-threaded"],
)
def test_the_kernels_are_in_a_wheel_of_the_limited_api_where_there_is_one(
    pure: bool, free_threaded: bool, has_kernels: bool, limited_api: str | bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sysconfig.get_config_var
    monkeypatch.setattr(
        sysconfig, "get_config_var", lambda name: int(free_threaded) if name == "Py_GIL_DISABLED" else real(name)
    )
    command = BuildWheel(Distribution({"name": "roost", "ext_modules": [Extension("roost._cpu", ["cpu.cc"])]}))
    command.py_limited_api, command.pure = "cp312", pure
    command.finalize_options()
    assert command.root_is_pure is not has_kernels
    assert command.py_limited_api == limited_api
