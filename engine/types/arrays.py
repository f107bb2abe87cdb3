"""Types of arrays on the host."""

from typing import Any

import numpy as np

type HostArray = np.ndarray[Any, np.dtype[Any]]

type ArrayFormat = tuple[tuple[int, ...], str]
"""Shape and dtype name of an array."""
