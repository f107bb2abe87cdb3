"""Finds the schedule of each kernel call of a compiled TPU program.

The compiler writes down the schedule of one call of those that share code. Calls share code if they have the same
kernel, and operands and results of the same types in the same memories.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from tpu_hlo import ArrayType, Computation, Instruction, Module
from tpu_schedule import Dump

_BODY: Final = re.compile(r'"body": ?"([^"]*)"')

type Code = tuple[str, tuple[ArrayType, ...]]
"""Text of a kernel, and types of its operands and results; without types, the code of all its calls."""


def is_call(instruction: Instruction) -> bool:
    """Returns whether an instruction calls a Pallas kernel."""
    return instruction.opcode == "custom-call" and '"tpu_custom_call"' in instruction.attributes


def names_of_schedules(module: Module, dump: Dump) -> Mapping[str, str]:
    """Returns, for every call of a kernel that has one, the name of the instruction with its schedule.

    If no call with the same types has a schedule, another call of the same kernel stands in for it.
    """
    codes = dict(_codes_of_calls(module))
    known: dict[Code, str] = {}
    for name in filter(dump.has_schedule, codes):
        body, types = codes[name]
        known |= {(body, types): name}
        known.setdefault((body, ()), name)
    found = {name: known.get((body, types), known.get((body, ()))) for name, (body, types) in codes.items()}
    return {name: name if dump.has_schedule(name) else other for name, other in found.items() if other is not None}


def _codes_of_calls(module: Module) -> Iterator[tuple[str, Code]]:
    for computation in module.computations.values():
        for instruction in filter(is_call, computation.values()):
            yield instruction.name, _code_of(computation, instruction)


def _code_of(computation: Computation, call: Instruction) -> Code:
    body = _BODY.search(call.attributes)
    types = [each for operand in call.operands if operand in computation for each in computation[operand].outputs]
    return body[1] if body else call.name, (*types, *call.outputs)
