"""`roost report --compile-only`: compiles a report's programs for a TPU or GPU, which this machine need not have."""

import sys

from ....engine import EngineConfig, ModelSource, compile_kernel_checks, verify_plan
from ...assembly.service import engine_config
from ...model_hub import find_model
from .options import ReportOptions


def compile_report(options: ReportOptions, chip: str) -> int:
    """Compiles the kernels' checks and the served programs, and prints what fails.

    Returns:
      1 if a program does not compile, or does not fit.

    Raises:
      ConfigError: The chip has no compiler here.
      CheckpointError: The model does not exist.
    """
    settings = options.load()
    config, source = engine_config(settings), find_model(settings.model)
    problems = [*_kernels(source, config, chip), *_programs(source, config, chip)]
    for problem in problems:
        print(f"problem: {problem}")
    print(f"{len(problems)} problems" if problems else f"all that a report runs compiles for {chip}")
    return 1 if problems else 0


def _kernels(source: ModelSource, config: EngineConfig, chip: str) -> list[str]:
    failures = []
    for name, failure in compile_kernel_checks(source, config, chip):
        print(f"{name}: {failure or 'compiled'}", file=sys.stderr, flush=True)
        failures += [f"{name}: {failure}"] if failure else []
    return failures


def _programs(source: ModelSource, config: EngineConfig, chip: str) -> list[str]:
    found = verify_plan(source, config, chip, lambda slots, done, total: None)
    print(f"{len(found.programs)} programs of {found.slots} slots: compiled", file=sys.stderr, flush=True)
    return [f"{program.name} does not fit" for program in found.programs if not program.fits]
