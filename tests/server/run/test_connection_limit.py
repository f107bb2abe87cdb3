"""The limit follows the settings and the slots, and keeps to the files that the process may open."""

import resource

from roost.server.run.http_server import connection_limit, raise_file_limit
from roost.server.settings import load_settings

ENOUGH = 2**20


def test_the_limit_follows_slots_and_queue() -> None:
    settings = load_settings({"max_queue": 256})
    assert connection_limit(settings, 0, ENOUGH) == (256 + 4096, "")
    assert connection_limit(settings, 3424, ENOUGH) == (3424 + 256 + 4096, "")


def test_the_setting_is_the_limit() -> None:
    assert connection_limit(load_settings({"max_connections": "50"}), 3424, ENOUGH) == (50, "")
    automatic, _ = connection_limit(load_settings({"max_connections": "auto"}), 0, ENOUGH)
    assert automatic > 50


def test_too_few_files_lower_the_limit_and_are_named() -> None:
    settings = load_settings({"max_connections": 5000})
    assert connection_limit(settings, 8, 6216) == (5000, "")
    assert connection_limit(settings, 8, 4096) == (
        4096 - 1216,
        "the process may open 4096 files, which is enough for 2880 connections, not 5000: raise the limit (ulimit -n) "
        "to 6216",
    )
    assert connection_limit(settings, 8, 1024)[0] == 512


def test_the_process_may_open_as_many_files_as_the_system_allows() -> None:
    earlier = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (earlier[0] - 10, earlier[0]))
        assert raise_file_limit() == earlier[0]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (earlier[0], earlier[0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (earlier[0], earlier[0]))
