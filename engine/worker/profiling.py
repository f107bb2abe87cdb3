"""What the host and the device do, seen by JAX's profiler; to be opened with xprof or Perfetto."""

import time
from pathlib import Path

import jax


def record_profile(folder: Path, seconds: float) -> None:
    """Blocks for so long, and leaves files in the folder. Only one can be recorded at a time."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # a line for every call of Python's would slow down what is to be seen
    jax.profiler.start_trace(str(folder), profiler_options=options)
    try:
        time.sleep(seconds)
    finally:
        jax.profiler.stop_trace()
