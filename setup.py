"""Packages of the distribution: every folder of the rooms that has an `__init__.py`. All else is in pyproject.toml."""

from setuptools import find_packages, setup

ROOMS = ("configs", "engine", "kernels", "server")

found = find_packages(include=[*ROOMS, *(f"{room}.*" for room in ROOMS)])
setup(packages=["roost", *(f"roost.{name}" for name in found)])
