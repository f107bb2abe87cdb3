"""Profiles of the host and the devices by JAX's profiler, for xprof or Perfetto."""

import time
from pathlib import Path

import jax


def record_profile(folder: Path, seconds: float) -> None:
    """Records a profile; one at a time per process.

    Args:
      folder: Folder for the files.
      seconds: Duration of the profile, for which the call blocks.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # a line per Python call would slow down what is measured
    jax.profiler.start_trace(str(folder), profiler_options=options)
    try:
        time.sleep(seconds)
    finally:
        jax.profiler.stop_trace()
