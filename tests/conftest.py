"""What holds for every test: the CPU, programs that are compiled once, and the same examples each time."""

import gc
import importlib.util
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import shared_programs
import sweeps
from databases import KINDS, PostgresqlServer, postgresql_server
from seconds_by_file import SecondsByFile
from suites import SUITES, expression, unnamed_skips
from workers import BITS, FIRST, FOR_CHIPS, FULL, ON_POSTGRESQL, OPTIMIZED, SharedScheduling, shuffled

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before anything imports jax
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

# A shell ignores Ctrl-C for its background jobs, and the commands that tests start and interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

_RUN = shared_programs.open_folder()  # removed at the end
_file: Path | None = None  # whose tests run now
_skips: list[str] = []  # reasons of the tests that were skipped

# They import other people's clients, which `python3 dev.py test-compat` brings.
collect_ignore = ["clients"]  # whose clients live in environments without Roost: `python3 dev.py test-clients`
collect_ignore_glob = [] if importlib.util.find_spec("schemathesis") else ["*/test_compat_*.py"]

gc.disable()  # until all tests are collected: imports make millions of objects, and no garbage

hypothesis.settings.register_profile("roost", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.register_profile(sweeps.PROFILE, hypothesis.settings.get_profile("roost"))
hypothesis.settings.load_profile("roost")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the tests that take longer than the default ones too")
    parser.addoption("--files", type=int, default=10, help="number of files whose seconds are listed; 0 for no list")


def pytest_configure(config: pytest.Config) -> None:
    for marker, suite in SUITES.items():
        config.addinivalue_line("markers", f"{marker}: {suite.what}")
    config.option.markexpr = config.option.markexpr or expression(run_all=config.getoption("--all"))
    config.pluginmanager.register(SecondsByFile(config.getoption("files")))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedScheduling | None:
    return SharedScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, paths in (("bits", BITS), ("full", FULL)):
            if item.nodeid.startswith(paths):
                item.add_marker(marker)
        cases = item.callspec.params if hasattr(item, "callspec") else {}
        if cases.get("address") == "postgresql" and not item.nodeid.startswith(ON_POSTGRESQL):
            item.add_marker("full")
    if order := os.environ.get("TEST_ORDER"):
        items[:] = shuffled(items, order)
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


def pytest_collection_finish() -> None:
    """Keeps the garbage collector from what is there before the first test, and lets it run less often than usual.

    Those are millions of objects that stay. JAX makes many more each time it traces a program, and few of them are in
    cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        _skips.append(report.longrepr[2])


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Lets a run fail that left out a test for a reason that `suites.SKIPS` doesn't have, where that is demanded."""
    is_controller = "PYTEST_XDIST_WORKER" not in os.environ
    if is_controller and "DEMAND_NAMED_SKIPS" in os.environ and (unnamed := unnamed_skips(_skips)):
        print(f"\nNOT RUN: {'; '.join(unnamed)}")
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    global _file
    if item.path != _file:
        shared_programs.configure_compiler(
            is_optimized=item.nodeid.startswith(OPTIMIZED), is_kept=not item.nodeid.startswith(FOR_CHIPS)
        )
        _file = item.path


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escapes lone surrogates in what a test logged: workers send reports as UTF-8."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """One PostgreSQL for all tests, since it takes a second or two to start."""
    with postgresql_server() as server:
        yield server


@pytest.fixture(params=KINDS)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of a store in each kind of database."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path / 'store.db'}"
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    return server.url
