"""What holds for every test: the CPU, no compilation cache, and the same examples each time."""

import os

import hypothesis

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before anything imports jax
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

hypothesis.settings.register_profile("roost", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("roost")
