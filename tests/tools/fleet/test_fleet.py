"""The model of a fleet, by hand: times of requests, caches, routers, replicas that come and go; and its page.

No server and no proxy runs here.
"""

import xml.etree.ElementTree as ET
from typing import Any

import event_path
import fleet_model
import fleet_page
import fleet_servers
import host_chips
import pytest
from fleet_model import Fleet, Policy, Workload
from roost.engine.planning.replicas import OVERHEAD_S, Arrival, Chip, Clock, Replica, SimulatedRequest

CHIP = Chip(slots=2, step_s=0.02, prefill_tokens_per_s=8000.0, cached_prefixes=2, max_queue=1)
WORK = Workload(prefixes=8, prefix_tokens=1024, question_tokens=32, output_tokens=(10, 10))
COLD_S = OVERHEAD_S + (1024 + 64) / 8000
WARM_S = OVERHEAD_S + 64 / 8000


def run(*arrivals: Any, replicas: int = 1, chip: Any = CHIP, router: Any = None, policy: Any = None) -> Any:
    return Fleet(chip, WORK, router or fleet_model.InTurn(), policy).run(replicas, arrivals, 1000.0)


def test_a_lone_request_takes_its_prefill_and_a_step_for_each_further_token() -> None:
    (job,) = run(Arrival(1.0, 0, 10)).jobs
    assert job.ttft_s == pytest.approx(COLD_S)
    assert job.end == pytest.approx(1.0 + COLD_S + 9 * 0.02)


def test_a_cached_prefix_is_not_prefilled_again_until_others_take_its_place() -> None:
    jobs = run(*(Arrival(float(at), prefix, 10) for at, prefix in enumerate((0, 0, 1, 2, 0)))).jobs
    assert [job.was_hit for job in jobs] == [False, True, False, False, False]
    assert jobs[1].ttft_s == pytest.approx(WARM_S)
    assert jobs[4].ttft_s == pytest.approx(COLD_S)


def test_prefill_makes_the_steps_of_others_longer() -> None:
    """192 of 1,088 tokens at a time, which with a step of 20 ms keep to 2.465 steps between two tokens."""
    first, second = run(Arrival(0.0, 0, 100), Arrival(1.0, 1, 10)).jobs
    cycle_s = 0.02 + 192 / 8000
    waits_s = 0.5 * 0.02 + OVERHEAD_S
    assert second.ttft_s == pytest.approx(waits_s + 1088 / 192 * cycle_s)
    assert first.end == pytest.approx(COLD_S + 99 * 0.02 + 1088 / 8000)


def test_a_request_without_a_slot_waits_and_one_behind_a_full_queue_is_refused() -> None:
    policy = Policy(retries=0)
    *served, waiting, refused = run(*(Arrival(0.1 * n, 0, 10) for n in range(4)), policy=policy).jobs
    assert waiting.first > min(job.end for job in served)
    assert (refused.failure, refused.first) == ("refused", None)
    again = run(*(Arrival(0.1 * n, 0, 10) for n in range(4)), policy=Policy(retries=3)).jobs[-1]
    assert again.failure == ""
    assert again.tries > 1
    assert again.ttft_s >= 0.5, "it counts from the first try"


def test_all_requests_end_and_none_is_faster_than_the_chip() -> None:
    chip = Chip(slots=8, step_s=0.02, prefill_tokens_per_s=8000.0, cached_prefixes=8)
    load = fleet_model.steady(WORK, 0.8 * 4 * fleet_model.capacity(chip, WORK, 1.0), 60.0, 1)
    outcome = run(*load, replicas=4, chip=chip, router=fleet_model.Picker())
    assert all(job.end - job.arrival.at >= WARM_S + 9 * 0.02 - 1e-6 for job in outcome.jobs)
    assert not any(job.tries > 1 for job in outcome.jobs)
    assert outcome.num_cut == 0
    assert sum(job.was_hit for job in outcome.jobs) > 0.9 * len(outcome.jobs)


def test_more_than_the_capacity_does_not_fit() -> None:
    rate = 1.3 * fleet_model.capacity(CHIP, WORK, 1.0)
    outcome = run(*fleet_model.steady(WORK, rate, 60.0, 1), policy=Policy(retries=0))
    done = sum(not job.failure for job in outcome.jobs)
    assert 0 < done / 60 <= fleet_model.capacity(CHIP, WORK, 1.0)
    assert {job.failure for job in outcome.jobs} == {"", "refused"}


def test_a_warm_fleet_has_each_prefix_where_its_router_looks_for_it() -> None:
    load = [Arrival(float(prefix), prefix, 10) for prefix in range(8)]
    chip = Chip(slots=2, step_s=0.02, prefill_tokens_per_s=8000.0, cached_prefixes=8)
    outcome = Fleet(chip, WORK, fleet_model.PrefixHash()).run(4, load, 100.0, is_warm=True)
    assert all(job.was_hit for job in outcome.jobs)


# --- routers


def replicas(count: int) -> list[Any]:
    clock = Clock()
    return [Replica(clock, number, CHIP, WORK.prefill_tokens) for number in range(count)]


def routed(router: Any, fleet: list[Any]) -> Any:
    for replica in fleet:
        router.add(replica)
    return router


def job_of(prefix: int) -> Any:
    return SimulatedRequest(Arrival(0.0, prefix, 10))


def test_a_prefix_stays_at_its_replica_while_others_come_and_go() -> None:
    fleet = replicas(8)
    router = routed(fleet_model.PrefixHash(), fleet)
    before = [router.pick(job_of(prefix)) for prefix in range(200)]
    assert len(set(before)) == 8
    router.remove(fleet[3])
    after = [router.pick(job_of(prefix)) for prefix in range(200)]
    assert fleet[3] not in after
    assert all(new is old for new, old in zip(after, before, strict=True) if old is not fleet[3])
    router.add(fleet[3])
    assert [router.pick(job_of(prefix)) for prefix in range(200)] == before


def test_a_bounded_load_passes_the_rest_of_a_hot_prefix_on() -> None:
    fleet = replicas(4)
    router = routed(fleet_model.PrefixHash(1.25), fleet)
    for _ in range(100):
        router.pick(job_of(0)).load += 1
    assert max(each.load for each in fleet) <= 1.25 * 25 + 2
    unbounded = routed(fleet_model.PrefixHash(), fleet)
    assert len({unbounded.pick(job_of(0)) for _ in range(100)}) == 1


def test_the_picker_weighs_a_prefix_against_free_slots_and_queues() -> None:
    fleet = replicas(2)
    router = routed(fleet_model.Picker(), fleet)
    fleet[1].submit(job_of(5))
    assert router.pick(job_of(5)) is fleet[1], "3 for its prefix are more than 1 for a slot"
    for _ in range(2):
        fleet[1].submit(job_of(5))
    assert fleet[1].waiting == 1
    assert router.pick(job_of(5)) is fleet[0], "its queue and its slots cost 4"


def test_of_two_replicas_the_one_with_fewer_requests_is_picked() -> None:
    fleet = replicas(2)
    router = routed(fleet_model.LeastOfTwo(), fleet)
    for _ in range(400):
        router.pick(job_of(0)).load += 1
    assert abs(fleet[0].load - fleet[1].load) < 20
    router.remove(fleet[0])
    assert router.pick(job_of(0)) is fleet[1]


# --- replicas that come and go


def test_the_autoscaler_adds_what_the_load_needs_once_it_has_started() -> None:
    chip = Chip(slots=4, step_s=0.02, prefill_tokens_per_s=8000.0, cached_prefixes=8, max_queue=1000)
    load = fleet_model.steady(WORK, 4 * fleet_model.capacity(chip, WORK, 1.0), 120.0, 2)
    policy = Policy(start_s=10.0, target=0.7, look_s=5.0)
    outcome = Fleet(chip, WORK, fleet_model.LeastOfTwo(), policy).run(1, load, 300.0)
    assert outcome.replicas[0] == (0.0, 1)
    assert outcome.replicas[1][0] == pytest.approx(15.0)
    assert outcome.replicas[-1][1] >= 4
    assert all(not job.failure for job in outcome.jobs)


@pytest.mark.parametrize(("notice_s", "is_cut"), [(0.0, True), (100.0, False)])
def test_a_reclaim_cuts_what_does_not_end_within_its_notice(notice_s: float, is_cut: bool) -> None:
    load = [Arrival(0.5 * number, number % 8, 500) for number in range(100)]
    policy = Policy(retries=50, start_s=5.0, reclaims_per_hour=200.0, notice_s=notice_s)
    chip = Chip(slots=8, step_s=0.02, prefill_tokens_per_s=8000.0, cached_prefixes=8)
    outcome = Fleet(chip, WORK, fleet_model.LeastOfTwo(), policy, seed=1).run(4, load, 2000.0)
    assert (outcome.num_cut > 0) == is_cut
    assert all(job.end is not None and not job.failure for job in outcome.jobs)
    assert min(count for _, count in outcome.replicas[4:]) < 4


# --- loads, and what is read and written


def test_a_hot_prefix_has_its_share_and_the_others_follow_zipf() -> None:
    work = Workload(prefixes=100, prefix_tokens=64, question_tokens=1, output_tokens=(5, 9), hot_share=0.5)
    load = fleet_model.steady(work, 1000.0, 20.0, 1)
    assert len(load) == pytest.approx(20_000, rel=0.05)
    shares = [sum(each.prefix == prefix for each in load) / len(load) for prefix in range(4)]
    harmonic = sum(1 / number for number in range(1, 101))
    assert shares == pytest.approx([0.5 + 0.5 / harmonic, *(0.5 / harmonic / n for n in (2, 3, 4))], abs=0.02)
    assert {each.output_tokens for each in load} == {5, 6, 7, 8, 9}


def test_series_of_one_name_are_added() -> None:
    page = '# HELP a\na{x="1"} 2.0\na{x="2"} 3\nvllm:b_total{x="y z"} 1e3\n'
    assert fleet_servers.parse_metrics(page) == {"a": 5.0, "vllm:b_total": 1000.0}


def test_the_page_has_every_table_and_the_picture_is_svg() -> None:
    fared = {"ttft_p50_s": 0.1, "ttft_p99_s": 2.5, "hits": 0.5, "failed": 0.0}
    seen = {
        **fared,
        "ttft_mean_s": 0.2,
        "e2e_mean_s": 3.0,
        "tokens_per_s": 1000.0,
        "hit_share": 0.995,
        "requests": 200,
        "done": 199,
        "cut": 1,
        "tries": 1.5,
    }
    routers = ("a", "b")
    facts = {"machine": {"cpu": "A <CPU>", "cpus": 2, "load_average": 0.1}, "started": "2026-11-26T", "tree": "abc"}
    of_servers = {
        "chip": {"slots": 16, "step_s": 0.02},
        "cached_prefixes": 20,
        "resident_mb": 150.0,
        "calibration": [{"replicas": 4, "cpu_share": 0.3, "servers": seen, "model": {**seen, "ttft_mean_s": 0.19}}],
        "routing": [{"by": "haproxy", "way": "random", **seen}],
        "faults": [{"what": "one killed", **seen}],
        "overload": [{"what": "clients wait", **seen}],
    }
    of_model: dict[str, Any] = {
        "cached_prefixes": 18,
        "need": [{"router": r, "replicas": n, "requests_per_s": 4.0} for r in routers for n in (1, 4)],
        "hot": [{"router": r, "share": s, **fared} for r in routers for s in (0.0, 0.2)],
        "scaling": [{"target": t, "start_s": s, **fared} for t in (0.5, 0.7) for s in (5.0, 60.0)],
        "spot": [{"notice_s": n, "per_hour": h, "cut": 0.01, **fared} for n in (0.0, 30.0) for h in (0.0, 1.0)],
    }
    page = fleet_page.page({"servers": {**facts, "results": of_servers}, "model": {**facts, "results": of_model}})
    assert "| | model ÷ servers | 1.00 | 0.95 | 1.00 | 1.00 |  |  |".replace("| |", "|  |") in page
    assert "| haproxy | random | 99.5 % | 0.100 | 2.500 | 3.000 |" in page
    assert "| one killed | 200 | 99.5 % | 1 | 2.500 |" in page
    assert "| clients wait | 200 | 99.5 % | 1.50 | 2.500 |" in page
    assert "| 0.7 | 2.50 | 2.50 |" in page
    never = [{**each, "ttft_p99_s": 999.0} for each in of_model["scaling"]]
    model = {**facts, "results": {**of_model, "scaling": never}}
    without = fleet_page.page({"servers": {**facts, "results": of_servers}, "model": model})
    assert "| 0.5 | given up | given up |" in without
    assert max(map(len, page.splitlines())) < 130
    picture = ET.fromstring(fleet_page.picture_of(of_model))
    curves = [each for each in picture.iter("{http://www.w3.org/2000/svg}path") if "curve" in each.get("class", "")]
    assert len(curves) == 2 * 4


def test_a_front_end_keeps_up_if_most_tokens_have_an_event_of_their_own() -> None:
    Delivery = host_chips.Delivery
    found = [Delivery(1, 4, 40_000.0, 38_000.0, 15.0), Delivery(1, 4, 50_000.0, 47_000.0, 17.0)]
    cached = [{"name": "one process", "memory_mb": 260.0, "hit_share": 0.75, "ttft_p50_s": 0.03, "ttft_p99_s": 1.2}]
    facts = {"cpu": "A CPU", "cpus": 2, "load_average": 0.1, "date": "2026-11-26", "tree": "abc"}
    page = host_chips.page(found, cached, facts)
    assert "| 1 | 4 | 40,000 | 38,000 | 15.0 | yes |" in page
    assert "| 1 | 4 | 50,000 | 47,000 | 17.0 | no |" in page
    assert "| one process | 260 | 75 % | 30 | 1,200 |" in page


def test_parts_of_a_chips_time_are_shown_as_shares_of_its_tokens() -> None:
    chip = event_path.ChipDelivery([event_path.Part(52_240.0, 52_200.0, 0.8, 0.25)], 512)
    assert "| 1 | 52,240 | 52,200 | 99.9 % | 0.80 | 0.25 |" in event_path.chip_table(chip)


def test_costs_of_rounds_are_medians() -> None:
    costs = [event_path.Cost(user, 4.0, 25_000.0, b"data: {}\n\n") for user in (9.0, 8.0, 12.0)]
    bare = [event_path.Cost(5.0, 4.0, 25_600.0, b"data: {}\n\n")]
    table = event_path.costs_table([event_path.Comparison("chat", costs, bare)])
    assert "| chat | Roost | 13.0 | 4.0 | 13.0, 12.0, 16.0 | 25,000 |" in table
    assert "| chat | uvicorn and Starlette | 9.0 | 4.0 | 9.0 | 25,600 |" in table
