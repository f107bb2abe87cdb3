"""The limit follows the settings and the slots, and keeps to the files that the process may open."""

import resource

from roost.server.run.http_server import ConnectionLimit, raise_file_limit
from roost.server.settings import load_settings

ENOUGH = 2**20


def test_the_limit_follows_slots_and_queue() -> None:
    settings = load_settings({"max_queue": 256})
    assert ConnectionLimit.of(settings, 0, ENOUGH).number == 256 + 4096
    limit = ConnectionLimit.of(settings, 3424, ENOUGH)
    assert limit.number == 3424 + 256 + 4096
    assert limit.warning is None


def test_the_setting_is_the_limit() -> None:
    limit = ConnectionLimit.of(load_settings({"max_connections": "50"}), 3424, ENOUGH)
    assert limit.number == 50
    automatic = ConnectionLimit.of(load_settings({"max_connections": "auto"}), 0, ENOUGH)
    assert automatic.number > 50


def test_too_few_files_lower_the_limit_and_are_named() -> None:
    settings = load_settings({"max_connections": 5000})
    assert ConnectionLimit.of(settings, 8, 6216).warning is None
    limit = ConnectionLimit.of(settings, 8, 4096)
    assert limit.number == 4096 - 1216
    assert limit.warning == (
        "the process may open 4096 files, which is enough for 2880 connections, not 5000: raise the limit (ulimit -n) "
        "to 6216"
    )
    assert ConnectionLimit.of(settings, 8, 1024).number == 512


def test_the_process_may_open_as_many_files_as_the_system_allows() -> None:
    earlier = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (earlier[0] - 10, earlier[0]))
        assert raise_file_limit() == earlier[0]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (earlier[0], earlier[0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (earlier[0], earlier[0]))
