"""Programs are compiled while the engine runs, on a thread that the engine neither waits for nor dies of."""

import logging
from dataclasses import replace
from threading import Event
from typing import Any

import pytest
from roost.engine.devices.platform import CPU
from roost.engine.worker.compilation import BackgroundCompiler, CompileCounter
from roost.engine.worker.served import Program, Served
from test_lowering import served_on


def serving(*later: Program[Any]) -> Served:
    """Returns a served model with these programs as the ones that are compiled later."""
    served = served_on(CPU)
    served.programs.speculate = dict(enumerate(later))
    return served


def small_programs() -> list[Program[Any]]:
    programs = served_on(CPU).programs
    return [programs.copy_slot, programs.set_mask]


def broken_step(*arguments: Any) -> Any:
    raise RuntimeError("no such operation")


def test_programs_are_added_in_order_and_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    added, counter = [], CompileCounter()
    counter.start()
    compiler = BackgroundCompiler(serving(*small_programs()))
    with caplog.at_level(logging.INFO, "roost"):
        compiler.start(lambda program, compiled: added.append((program.label, callable(compiled))), counter)
        compiler.wait()
    counter.stop()
    assert added == [("copy", True), ("mask", True)]
    assert counter.count == 0
    assert not compiler.is_running
    assert "drafts: compiled 2 programs in" in caplog.text


def test_no_program_begins_after_a_stop() -> None:
    added, is_stopped = [], Event()

    def add(program: Program[Any], compiled: Any) -> None:
        added.append(program.label)
        is_stopped.wait()

    compiler = BackgroundCompiler(serving(*small_programs()))
    compiler.start(add, CompileCounter())
    assert compiler.is_running
    compiler.stop()
    is_stopped.set()
    compiler.wait()
    assert added in ([], ["copy"])


def test_a_program_that_does_not_compile_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    added: list[str] = []
    broken = replace(small_programs()[0], step=broken_step)
    compiler = BackgroundCompiler(serving(broken, small_programs()[1]))
    compiler.start(lambda program, compiled: added.append(program.label), CompileCounter())
    compiler.wait()
    assert added == []
    assert "a program did not compile; the engine goes on without it and later ones" in caplog.text
    assert "no such operation" in caplog.text


def test_nothing_starts_without_such_programs() -> None:
    compiler = BackgroundCompiler(serving())
    compiler.start(lambda program, compiled: None, CompileCounter())
    compiler.wait()
    assert not compiler.is_running
