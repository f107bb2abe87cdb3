"""Every kernel against its float32 reference at the served shapes."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .....engine import KernelCheck, check_kernels
from ....assembly.service import engine_config
from ....model_hub import find_model
from ..options import ReportOptions
from ..progress import say_step


def run(options: ReportOptions) -> Mapping[str, Any]:
    """Returns all checks, and the names of the kernels that are wrong."""
    settings = options.load()
    source = find_model(settings.model)
    checks = list(check_kernels(source, engine_config(settings), say_step))
    wrong = [check for check in checks if not check.is_right]
    return {
        "checks": [{**asdict(check), "shape": list(check.shape), "is_right": check.is_right} for check in checks],
        "wrong_kernels": sorted({check.kernel for check in wrong}),
        "problems": [_problem(check) for check in wrong],
    }


def _problem(check: KernelCheck) -> str:
    where = f"{check.kernel}, {check.step} of {check.shape.rows} x {check.shape.tokens}, {check.numbers}"
    if check.failure is not None:
        return f"{where}: {check.failure}"
    found = []
    if check.distance is not None and not check.distance.relative <= check.allowed:
        found.append(f"differs by {check.distance.relative:.1e}, allowed are {check.allowed:.1e}")
    if check.num_unequal:
        found.append(f"{check.num_unequal} elements have other bits in a second run")
    if not check.is_closed:
        found.append("idle rows or padding reach other tokens")
    return f"{where}: {'; '.join(found)}"
