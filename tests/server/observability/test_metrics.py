"""Prometheus metrics of requests, tenants and the engine."""

from dataclasses import replace

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from roost.engine import (
    CacheStats,
    DraftCounts,
    EngineDeadError,
    EngineStats,
    FinishReason,
    QueueFullError,
    Request,
    TokenOutput,
)
from roost.server.observability.metrics import ConnectionCounts, Metrics
from roost.server.observability.request_metrics import Histogram

STATS = EngineStats(
    num_waiting=3,
    num_running=2,
    slots=8,
    prompt_tokens=100,
    generated_tokens=50,
    steps=40,
    compiles_since_ready=1,
    restore_seconds=0.5,
    cache=CacheStats(budget=9000, num_bytes=5000, snapshots=6, queries=7, hits=4, hit_tokens=300, evictions=2),
)


REQUEST = Request("r", (1, 2, 3), tenant="alice")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics(clock: Clock) -> Metrics:
    return Metrics(lambda: STATS, clock)


def read(metrics: Metrics, clock: Clock) -> dict[str, float]:
    """Returns every sample of the page by its name and label values."""
    clock.now += 1
    families = text_string_to_metric_families(metrics.page().decode())
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in families
        for sample in family.samples
    }


def test_engine_statistics_are_exported(metrics: Metrics, clock: Clock) -> None:
    samples = read(metrics, clock)
    expected = {
        "roost_num_requests_running": 2,
        "roost_num_requests_waiting": 3,
        "roost_slots": 8,
        "roost_slots_used": 2,
        "roost_prompt_tokens_total": 100,
        "roost_generation_tokens_total": 50,
        "roost_compiles_since_ready_total": 1,
        "roost_state_cache_bytes host": 5000,
        "roost_state_cache_snapshots": 6,
        "roost_state_cache_queries_total": 7,
        "roost_state_cache_hits_total": 4,
        "roost_state_cache_hit_tokens_total": 300,
        "roost_state_cache_evictions_total": 2,
        "roost_state_cache_restore_seconds_total": 0.5,
    }
    assert expected.items() <= samples.items()
    assert not any(name.endswith("_created") for name in samples)


def test_latencies_of_a_request(metrics: Metrics, clock: Clock) -> None:
    (record,) = metrics.requests.track([REQUEST])
    for wait, count, reason in ((2.0, 1, None), (0.5, 1, None), (1.0, 2, None), (9.0, 0, FinishReason.STOP)):
        clock.now += wait
        record.add(TokenOutput(started_at=1000.5), count, reason)
    record.end()
    samples = read(metrics, clock)
    assert samples["roost_time_to_first_token_seconds_sum"] == 2.0
    assert samples["roost_inter_token_latency_seconds_sum"] == 1.5
    assert samples["roost_inter_token_latency_seconds_count"] == 3
    assert samples["roost_e2e_request_latency_seconds_sum"] == 12.5
    assert samples["roost_requests_total stop"] == 1
    assert samples["roost_request_queue_time_seconds_sum"] == 0.5
    assert samples["roost_request_prefill_time_seconds_sum"] == 1.5
    assert samples["roost_request_decode_time_seconds_sum"] == 10.5


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (QueueFullError("full"), "rejected"),
        (EngineDeadError("dead"), "error"),
        (RuntimeError(), "error"),
        (GeneratorExit(), "abort"),
    ],
)
def test_reasons_of_requests_that_do_not_finish(
    metrics: Metrics, clock: Clock, error: BaseException, reason: str
) -> None:
    (record,) = metrics.requests.track([REQUEST])
    record.end(error)
    samples = read(metrics, clock)
    assert samples[f"roost_requests_total {reason}"] == 1
    assert samples["roost_e2e_request_latency_seconds_count"] == 0


def test_all_reasons_are_exported_from_the_start(metrics: Metrics, clock: Clock) -> None:
    reasons = {name.split()[-1] for name in read(metrics, clock) if name.startswith("roost_requests_total")}
    assert reasons == {"stop", "length", "abort", "rejected", "timeout", "error"}


def run_one(metrics: Metrics, clock: Clock, request: Request) -> None:
    """Records a request: 0.5 s of queue, 1.5 s of prefill, and 3 s for three more tokens."""
    (record,) = metrics.requests.track([request])
    for wait, count, reason in ((2.0, 1, None), (1.0, 1, None), (2.0, 2, FinishReason.LENGTH)):
        clock.now += wait
        record.add(TokenOutput(started_at=clock.now - 1.5), count, reason)
    record.end()


def test_tenants_are_counted_by_name(clock: Clock) -> None:
    metrics = Metrics(lambda: STATS, clock, tenants=("alice", "bob"))
    run_one(metrics, clock, REQUEST)
    run_one(metrics, clock, Request("health", (1,)))
    samples = read(metrics, clock)
    tenants = {name: value for name, value in samples.items() if name.startswith("roost_tenant")}
    assert tenants == {
        "roost_tenant_requests_total length alice": 1,
        "roost_tenant_prompt_tokens_total alice": 3,
        "roost_tenant_prompt_tokens_total bob": 0,
        "roost_tenant_generation_tokens_total alice": 4,
        "roost_tenant_generation_tokens_total bob": 0,
    }


def test_server_without_keys_has_no_tenant_metrics(metrics: Metrics, clock: Clock) -> None:
    run_one(metrics, clock, Request("r", (1,)))
    assert not any("tenant" in name for name in read(metrics, clock))


VLLM = (
    "num_requests_running",
    "num_requests_waiting",
    "num_requests_waiting_by_reason",
    "kv_cache_usage_perc",
    "cache_config_info",
    "num_preemptions_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "prompt_tokens_total",
    "generation_tokens_total",
    "request_success_total",
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_params_n",
    "request_params_max_tokens",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_inference_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_time_per_output_token_seconds",
    "request_max_num_generation_tokens",
    "iteration_tokens_total",
)


def test_metrics_under_vllms_names(clock: Clock) -> None:
    metrics = Metrics(lambda: STATS, clock, vllm_model="m")
    run_one(metrics, clock, REQUEST)
    samples = read(metrics, clock)
    for name in VLLM:
        assert any(each.split()[0] in (f"vllm:{name}", f"vllm:{name}_count") for each in samples), name
    expected = {
        "vllm:num_requests_running 0 m": 2,
        "vllm:num_requests_waiting 0 m": 3,
        "vllm:num_requests_waiting_by_reason 0 m capacity": 3,
        "vllm:kv_cache_usage_perc 0 m": 0.25,
        "vllm:cache_config_info 64 0 8 0 m 0": 1,
        "vllm:prompt_tokens_total 0 m": 400,
        "vllm:request_max_num_generation_tokens_sum 0 m": 4,
        "vllm:prefix_cache_queries_total 0 m": 400,
        "vllm:prefix_cache_hits_total 0 m": 300,
        "vllm:request_success_total 0 length m": 1,
        "vllm:time_to_first_token_seconds_sum 0 m": 2.0,
        "vllm:inter_token_latency_seconds_count 0 m": 3,
        "vllm:request_queue_time_seconds_sum 0 m": 0.5,
        "vllm:request_prefill_time_seconds_sum 0 m": 1.5,
        "vllm:request_decode_time_seconds_sum 0 m": 3.0,
        "vllm:request_inference_time_seconds_sum 0 m": 4.5,
        "vllm:request_time_per_output_token_seconds_sum 0 m": 1.0,
        "vllm:request_prompt_tokens_sum 0 m": 3,
        "vllm:request_generation_tokens_sum 0 m": 4,
        "vllm:request_params_max_tokens_sum 0 m": 16,
        "vllm:request_params_n_sum 0 m": 1,
    }
    assert {name: samples[name] for name in expected} == expected


def test_drafts_are_counted_under_vllms_names(clock: Clock) -> None:
    stats = replace(STATS, drafts=DraftCounts(3, 9, (3, 2, 0)))
    samples = read(Metrics(lambda: stats, clock, vllm_model="m"), clock)
    spec = "vllm:spec_decode_num"
    expected = {
        f"{spec}_drafts_total 0 m": 3,
        f"{spec}_draft_tokens_total 0 m": 9,
        f"{spec}_accepted_tokens_total 0 m": 5,
        **{f"{spec}_accepted_tokens_per_pos_total 0 m {place}": count for place, count in enumerate((3, 2, 0))},
    }
    assert {name: samples.get(name) for name in expected} == expected
    without = read(Metrics(lambda: STATS, clock, vllm_model="m"), clock)
    assert not [name for name in without if name.startswith(spec)]


def test_both_families_have_the_same_latencies(clock: Clock) -> None:
    """A request that only reads its prompt has waited too, though it has no first token."""
    metrics = Metrics(lambda: STATS, clock, vllm_model="m")
    run_one(metrics, clock, REQUEST)
    (record,) = metrics.requests.track([REQUEST])
    clock.now += 2.0
    record.add(TokenOutput(started_at=clock.now - 1.5), 0, FinishReason.LENGTH)
    record.end()
    samples = read(metrics, clock)
    assert samples["roost_request_queue_time_seconds_count"] == 2
    for name in VLLM:
        for part in ("count", "sum"):
            if (ours := samples.get(f"roost_{name}_{part}")) is not None:
                assert samples[f"vllm:{name}_{part} 0 m"] == ours, name


def test_a_single_token_says_nothing_about_those_after_the_first(clock: Clock) -> None:
    metrics = Metrics(lambda: STATS, clock, vllm_model="m")
    (record,) = metrics.requests.track([REQUEST])
    record.add(TokenOutput(started_at=clock.now), 1, FinishReason.LENGTH)
    record.end()
    samples = read(metrics, clock)
    assert samples["vllm:request_decode_time_seconds_count 0 m"] == 1
    assert samples["vllm:request_time_per_output_token_seconds_count 0 m"] == 0


def test_tokens_per_step_are_a_histogram(clock: Clock) -> None:
    stats = EngineStats(prompt_tokens=70, generated_tokens=3, step_tokens=(2, 1, *[0] * 3, 1, *[0] * 8))
    samples = read(Metrics(lambda: stats, clock, vllm_model="m"), clock)
    name = "vllm:iteration_tokens_total"
    assert [samples[f"{name}_bucket {bound}"] for bound in ("0 1.0 m", "0 8.0 m", "0 64.0 m", "0 128.0 m")] == [
        2,
        3,
        3,
        4,
    ]
    assert (samples[f"{name}_count 0 m"], samples[f"{name}_sum 0 m"]) == (4, 73)


def test_vllms_names_are_exported_on_demand_only(metrics: Metrics, clock: Clock) -> None:
    assert not any(name.startswith("vllm:") for name in read(metrics, clock))


def test_a_histogram_is_shown_under_each_name() -> None:
    registry = CollectorRegistry()
    histogram = Histogram({"seconds": {}, "other": {"model": "m"}}, "Seconds.", (1, 2.5), registry)
    for value, count in ((1.0, 1), (2.0, 3), (9.0, 1)):
        histogram.observe(value, count)
    page = prometheus_client.generate_latest(registry).decode()
    assert [line for line in page.splitlines() if not line.startswith("#")] == [
        'seconds_bucket{le="1.0"} 1.0',
        'seconds_bucket{le="2.5"} 4.0',
        'seconds_bucket{le="+Inf"} 5.0',
        "seconds_count 5.0",
        "seconds_sum 16.0",
        'other_bucket{le="1.0",model="m"} 1.0',
        'other_bucket{le="2.5",model="m"} 4.0',
        'other_bucket{le="+Inf",model="m"} 5.0',
        'other_count{model="m"} 5.0',
        'other_sum{model="m"} 16.0',
    ]


def test_connections_are_counted_by_port(clock: Clock) -> None:
    counts = {"public": ConnectionCounts(9, 3, 50, 2, 1), "admin": ConnectionCounts(1, 1, 64, 0, 0)}
    samples = read(Metrics(lambda: STATS, clock, connections=lambda: counts), clock)
    expected = {
        "roost_connections public": 9,
        "roost_connections_busy public": 3,
        "roost_connections_limit public": 50,
        "roost_connections_dropped_total public": 2,
        "roost_connections_refused_total public": 1,
        "roost_connections admin": 1,
        "roost_connections_limit admin": 64,
    }
    assert expected.items() <= samples.items()
