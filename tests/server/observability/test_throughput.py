"""The summary of throughput in the log."""

import logging
from dataclasses import replace

import pytest
from roost.engine import CacheStats, EngineStats
from roost.server.observability.metrics import ThroughputLog


def test_a_busy_engine_has_a_line_with_rates_and_an_idle_one_none(caplog: pytest.LogCaptureFixture) -> None:
    stats = EngineStats(prompt_tokens=100, generated_tokens=10)
    log = ThroughputLog(lambda: stats)
    caplog.set_level(logging.INFO, "roost")
    log.report(10.0)
    assert not caplog.records
    stats = replace(
        stats, prompt_tokens=600, generated_tokens=35, num_running=2, num_waiting=1, cache=CacheStats(hit_tokens=80)
    )
    log.report(10.0)
    stats = replace(stats, num_running=0, num_waiting=0)
    log.report(10.0)
    (record,) = caplog.records
    rates = "prompt_tokens_per_s=50.0 cached_tokens_per_s=8.0 generated_tokens_per_s=2.5"
    assert record.getMessage() == f"throughput {rates} running=2 waiting=1"
    assert record.__dict__["fields"]["generated_tokens_per_s"] == 2.5
