"""The comparison with peers: what it asks for, how it judges, what it prints, and that a broken peer costs only itself.

No peer runs here.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import contestants
import environments
import http_server
import jobs
import judge
import measure
import models
import orjson
import page
import plan
import protocol
import pytest
import roost_http
import run
from hypothesis import given
from hypothesis import strategies as st
from roost.engine.model.config import config_from_hf
from roost.server.commands.bench.report import percentile

FOLDER = Path(__file__).parents[2] / "benchmarks" / "peers"

ECHO = """
import time
from protocol import answer_all

def start(wanted):
    if wanted.get("broken"):
        raise SystemExit("cannot start")
    if wanted.get("hangs"):
        time.sleep(3600)
    return {"parameters": wanted["n"]}, {"twice": lambda x: 2 * x, "divide": lambda x: 1 / x, "end": lambda: exit(3)}

print("a library's words")
answer_all(start)
"""


# --- what is asked for


def test_models_have_the_parameters_that_roost_counts() -> None:
    for shape in models.GRIFFINS.values():
        assert config_from_hf(shape.hf_config("bfloat16")).num_parameters == shape.num_parameters
    assert models.LLAMA.num_parameters == pytest.approx(models.SMALL.num_parameters, rel=2e-3)


def test_every_row_can_be_measured() -> None:
    every, work = plan.entrants("work", 2), plan.tasks("work", "cache")
    for task, name in plan.pairs_of(plan.FAMILIES):
        assert work[task].seconds[name] > 0
        assert (FOLDER / every[name].script).is_file()
        assert every[name].environment is None or every[name].environment in environments.ENVIRONMENTS


def test_those_who_do_the_same_follow_each_other() -> None:
    tasks = [task for task, _ in plan.pairs_of(["official", "hf"])]
    assert tasks == sorted(tasks, key=tasks.index)
    assert plan.pairs_of(["single"]) == [("decode 1", "roost bf16"), ("decode 1", "hf"), ("decode 1", "roost int8")]


def test_locks_pin_everything_and_name_no_index() -> None:
    for environment in environments.ENVIRONMENTS.values():
        lines = environment.lock.read_text().splitlines()
        assert any("--hash=sha256:" in line for line in lines)
        assert all("==" in line for line in lines if line[:1].isalnum())
        assert not [line for line in lines if "://" in line or "index-url" in line]
        assert not any(line.startswith(("torch==", "nvidia-")) for line in lines)


def test_a_lock_without_what_is_compiled() -> None:
    lock = "# a comment\na==1 \\\n    --hash=x\n    # via b\nb==2 \\\n    --hash=y\n"
    assert environments.without(lock, "a") == "# a comment\nb==2 \\\n    --hash=y\n"


def test_what_pip_says_is_wrong() -> None:
    assert environments.reason("Collecting a\nERROR: no a\nWARNING: pip is old\n") == "ERROR: no a"
    assert environments.reason("Killed\n") == "Killed"
    assert environments.reason("") == ""


def test_expected_time_grows_with_rounds() -> None:
    def expected(rounds: int, quick: bool = False) -> float:
        here = Path()
        options = measure.Options(["hf"], rounds, quick, 2, [], work=here, cache=here, logs=here)
        return float(measure.expected_seconds(options))

    assert expected(1, quick=True) < expected(1) < expected(3) < 900


# --- jobs


def all_jobs(seed: int, quick: bool = False) -> list[Any]:
    """Every job that a server of the stage gets in a round."""
    found = []
    for name in (*plan.JOBS, "phases 32"):
        task = plan.tasks("work", "cache")[name]
        given = {**task.arguments, **(task.quick if quick else {})}
        if task.command == "job":
            found += jobs.equal_jobs(given["rows"], given["prompt"], given["new"], 32_000, seed)
        elif task.command == "phases":
            found += jobs.equal_jobs(given["rows"], given["prompt"], 1, 32_000, seed)
            found += [(ids, 1) for ids in protocol.draw_prompts(given["rows"], given["prompt"], 32_000, seed)]
        else:
            found += jobs.mixed_jobs(given["count"], given["prompt"], given["new"], 32_000, seed)
    return found


@pytest.mark.parametrize("quick", [False, True])
def test_no_prompt_begins_like_another_so_that_no_prefix_cache_helps(quick: bool) -> None:
    beginnings = [tuple(ids[:16]) for seed in (0, 1) for ids, _ in all_jobs(seed, quick)]
    assert len(set(beginnings)) == len(beginnings) > 400
    assert all_jobs(0, quick) == all_jobs(0, quick)


def test_mixed_jobs_have_lengths_of_all_sizes() -> None:
    mixed = jobs.mixed_jobs(2000, (64, 2048), (16, 512), 100, seed=3)
    prompts, outputs = sorted(len(ids) for ids, _ in mixed), sorted(new for _, new in mixed)
    assert 64 <= prompts[0] < 70
    assert 1950 < prompts[-1] <= 2048
    assert 16 <= outputs[0] <= outputs[-1] <= 512
    assert prompts[1000] == pytest.approx((64 * 2048) ** 0.5, rel=0.15), "half of them are below the geometric mean"
    assert all(models.RESERVED <= token < 100 for ids, _ in mixed for token in ids)


def test_the_numbers_of_a_job() -> None:
    found = jobs.outcome([[1.0, 1.5, 2.5], [3.0, 4.0]], tokens=10, seconds=4.0)
    assert found == {
        "job_s": 4.0,
        "output_tokens_per_s": 2.5,
        "requests_per_s": 0.5,
        "ttft_p50_ms": pytest.approx(2000),
        "ttft_p99_ms": pytest.approx(2980),
        "itl_p50_ms": pytest.approx(1000),
        "itl_p99_ms": pytest.approx(1000),
    }


def test_a_job_of_one_piece_has_no_time_between_tokens() -> None:
    found = jobs.outcome([[2.0]], tokens=1, seconds=2.0)
    assert (found["ttft_p50_ms"], found["ttft_p99_ms"]) == (2000, 2000)
    assert not any(name.startswith("itl") for name in found)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=50))
def test_percentiles_are_those_of_roost_bench(seconds: list[float]) -> None:
    found, ordered = jobs.percentiles_ms("ttft", seconds), sorted(seconds)
    for percent in (50, 99):
        assert found[f"ttft_p{percent}_ms"] == pytest.approx(1e3 * percentile(ordered, percent), abs=1e-6)


def test_requests_arrive_at_a_share_of_the_best_peers_newest_capacity() -> None:
    peers = [plan.Ref("closed 32", name, "requests_per_s") for name in ("one", "other", "absent")]
    runs: dict[str, Any] = {
        "closed 32": {"one": [{"requests_per_s": 9.0}, {"requests_per_s": 1.0}], "other": [{"requests_per_s": 2}]}
    }
    assert measure.arrival_rate(runs, peers) == pytest.approx(1.6)
    with pytest.raises(contestants.ContestantError, match="none was measured"):
        measure.arrival_rate({}, peers)


def test_arrivals_come_after_the_capacity_that_paces_them() -> None:
    order = [task for task, _ in plan.pairs_of(["load"])]
    paced = plan.tasks("work", "cache")["arrivals"]
    assert {ref.entrant for ref in paced.paced_by} == {"job vllm serve", "job llama-server"}
    assert all(order.index(ref.task) < order.index("arrivals") for ref in paced.paced_by)


def test_every_job_has_all_of_its_contestants() -> None:
    pairs = plan.pairs_of(["jobs", "load"])
    for task in plan.JOBS:
        assert {name for other, name in pairs if other == task} >= set(plan.SERVERS)


def test_vocabularies_have_a_text_for_every_token() -> None:
    words = models.vocabulary(models.LLAMA.vocab_size)
    assert len(set(words)) == len(words) == models.LLAMA.vocab_size
    assert list(models.hf_tokenizer(100)["model"]["vocab"].values()) == list(range(100))


# --- servers

SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        body = json.dumps({"data": [{"id": "m"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        new = asked["max_tokens"] - int(sys.argv[2])
        for _ in range(new):
            self.say({"choices": [{"text": "a", "token_ids": [5]}]})
        usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": new}
        self.say({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\\n\\n")
        self.close_connection = True

    def say(self, chunk):
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\\n\\n")

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def server() -> Iterator[Any]:
    made: list[Any] = []

    def make(omitted: int = 0) -> Any:
        launch = http_server.Launch([sys.executable, "-c", SERVER, "{port}", str(omitted)], "/health")
        made.append(http_server.Server(launch, vocab_size=100, seconds=60))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_client_measures_any_server(server: Any) -> None:
    one = server()
    assert one.model == "m"
    one.warm()
    whole = one.job(rows=3, prompt=7, new=4, seed=0)
    assert whole["output_tokens_per_s"] == pytest.approx(12 / whole["job_s"])
    assert 0 < whole["ttft_p50_ms"] <= 1e3 * whole["job_s"]
    closed = one.closed(concurrency=2, count=5, prompt=(3, 9), new=(2, 4), seed=0)
    assert closed["requests_per_s"] == pytest.approx(5 / closed["job_s"])
    open_loop = one.arrivals(rate=100.0, count=5, prompt=(3, 9), new=(2, 4), seed=0)
    assert open_loop["rate"] == 100.0


def test_a_server_that_does_less_work_is_not_measured(server: Any) -> None:
    with pytest.raises(http_server.RequestError, match=r"counts 7 \+ 3 tokens, and 7 \+ 4 were asked for"):
        server(omitted=1).job(rows=1, prompt=7, new=4, seed=0)


def test_a_server_that_does_not_start_is_told() -> None:
    with pytest.raises(http_server.RequestError, match="ended with status 3"):
        http_server.Server(http_server.Launch([sys.executable, "-c", "exit(3)"], "/health"), 100, seconds=60)


# --- contestants


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(FOLDER))
        made: list[Any] = []

        def make(**wanted: Any) -> Any:
            made.append(contestants.Contestant([sys.executable, "-c", ECHO], wanted, {}, tmp_path / "log"))
            return made[-1]

        yield make
    for contestant in made:
        contestant.close()


def test_a_contestant_loads_and_answers(echo: Any) -> None:
    contestant = echo(n=7)
    assert contestant.load(60) == {"parameters": 7}
    contestant.pause()
    contestant.go_on()
    assert contestant.do("twice", 60, x=4) == 8
    if sys.platform == "linux":
        assert contestant.memory()["peak_bytes"] >= contestant.memory()["resident_bytes"] > 1e6


def test_an_error_is_one_line_and_the_next_command_works(echo: Any) -> None:
    contestant = echo(n=1)
    contestant.load(60)
    with pytest.raises(contestants.ContestantError, match="ZeroDivisionError: division by zero"):
        contestant.do("divide", 60, x=0)
    with pytest.raises(contestants.ContestantError, match="there is no command 'sing'"):
        contestant.do("sing", 60)
    assert contestant.do("twice", 60, x=1) == 2
    assert not contestant.is_gone


def test_a_contestant_that_ends_says_why(echo: Any) -> None:
    with pytest.raises(contestants.ContestantError, match="ended with status 1: cannot start"):
        echo(broken=True).load(60)
    contestant = echo(n=1)
    contestant.load(60)
    with pytest.raises(contestants.ContestantError, match="ended with status 3: a library's words"):
        contestant.do("end", 60)
    assert contestant.is_gone


def test_a_contestant_that_takes_too_long_is_ended(echo: Any) -> None:
    with pytest.raises(contestants.ContestantError, match="by us after 0 s"):
        echo(hangs=True).load(0.001)


def test_a_stage_goes_on_without_a_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cannot be installed, one fails at its work, one does it."""
    monkeypatch.setenv("PYTHONPATH", str(FOLDER))
    script = tmp_path / "echo.py"
    script.write_text(ECHO.replace('"end"', '"warm": lambda: None, "work": lambda x: {"y": 1 / x}, "end"'))
    every = {
        "good": plan.Entrant("s", "Good", str(script), None, {"n": 1}),
        "bad": plan.Entrant("s", "Bad", str(script), "hf", {"n": 1}),
    }

    def cannot(*arguments: Any) -> Any:
        raise environments.CannotInstall("no such Python")

    monkeypatch.setattr(measure, "prepare", cannot)
    work = {
        "do": plan.Task("work", {"x": 2}, {}, {}, seeded=False),
        "fail": plan.Task("work", {"x": 0}, {}, {}, seeded=False),
    }
    found = measure.Found()
    options = measure.Options(["f"], 2, False, 2, [], tmp_path, tmp_path, tmp_path)
    measure.Stage(options, found, every, work).run([("do", "good"), ("do", "bad"), ("fail", "good")])
    assert [result["y"] for result in found.runs["do"]["good"]] == [0.5, 0.5]
    assert found.entrants["bad"]["failure"] == "no such Python"
    assert found.failures == {"fail": {"good": "ZeroDivisionError: division by zero"}}


def test_a_client_of_a_served_peer_runs_in_our_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FOLDER))
    script = tmp_path / "echo.py"
    script.write_text(ECHO.replace('"parameters": wanted["n"]', '"parameters": wanted["python"]'))
    monkeypatch.setattr(measure, "prepare", lambda environment, index: tmp_path / environment.name)
    every = {"peer": plan.Entrant("s", "Peer", str(script), "hf", {}, is_served=True)}
    found = measure.Found()
    options = measure.Options(["f"], 1, False, 2, [], tmp_path, tmp_path, tmp_path)
    measure.Stage(options, found, every, {}).run([])
    assert found.entrants["peer"]["parameters"] == str(tmp_path / "hf")


# --- streams


def event(tokens: int) -> bytes:
    return b"data: " + orjson.dumps({"choices": [{"token_ids": [1] * tokens}]}) + b"\n\n"


def test_streams_count_from_the_last_first_token() -> None:
    together = roost_http.Together(2, tokens=3)
    one, two = together.streams
    for now in (1.0, 2.0, 3.0):
        one.feed(event(1), now)
    two.feed(event(1), 4.0)
    for now in (5.0, 6.0):
        one.feed(event(2), now)
        assert not together.done.is_set()
        two.feed(event(2), now)
    assert together.done.is_set()
    assert together.began_s == 4.0
    assert together.rate() == 8 / 2
    assert together.events(4.0, 6.0) == 4
    assert roost_http.waits(together, 4.0, 6.0, per_token=False) == [2.0, 1.0, 1.0, 1.0]
    assert roost_http.waits(together, 5.0, 6.0, per_token=True) == [0.5, 0.5]


def test_an_error_in_a_stream_is_told() -> None:
    with pytest.raises(roost_http.RequestError, match="too long"):
        roost_http.Stream().feed(b'data: {"error": {"message": "too long"}}\n\n', 1.0)


# --- the verdict


def made_up(**changes: Any) -> dict[str, Any]:
    """Two rounds of decode, a failed peer and an agreement."""

    def said(tokens: list[int], logprob: float) -> dict[str, Any]:
        return {"tokens": tokens, "top": {"5": logprob, "6": -3.0}}

    def speeds(*values: float) -> list[dict[str, float]]:
        return [{"decode_tokens_per_s": value, "peak_gb": 1.5} for value in values]

    titles = {"roost bf16": "Roost, bf16", "roost int8": "Roost, int8", "hf": "HF", "official": "Official"}
    titles |= {"roost nano": "Roost, nano", "hf nano": "HF, nano", "roost anew": "Roost, anew"}
    document = {
        "started": "2026-11-25T12:00:00+00:00",
        "tree": "0123456",
        "machine": {"cpu": "A | CPU", "cpus": 2, "memory_bytes": 2**34, "system": "Linux", "load_average": 0.1},
        "options": {"families": ["official", "hf", "start", "agree"], "rounds": 3, "threads": 2, "quick": False},
        "seconds": 120.0,
        "interrupted": False,
        "entrants": {name: {"title": title} for name, title in titles.items()},
        "runs": {
            "decode 8": {
                "roost bf16": speeds(100, 200, 300),
                "roost int8": speeds(400, 410, 420),
                "hf": speeds(100, 100, 200),
            },
            "start demo": {"roost anew": [{"seconds": 4.0}, {"seconds": 5.0}, {"seconds": 6.0}]},
            "agree": {
                "roost nano": [{"alone": [said([1, 2], -0.5)], "together": [said([1, 2], -0.5)]}],
                "hf nano": [{"alone": [said([1, 2], -0.5)], "together": [said([1, 3], -1.25)], "handed_out": [1]}],
            },
        },
        "failures": {"decode 8": {"official": "was killed"}},
    }
    document["entrants"]["roost bf16"] |= {"parameters": 1_234_567, "versions": {"jax": "0.12"}}
    return document | changes


def rows(document: dict[str, Any]) -> dict[str, Any]:
    return {row.goal.title: row for row in judge.judge(document, plan.goals())}


def test_ratios_are_those_within_a_round() -> None:
    row = rows(made_up())["decode, 8 at a time, bf16 against HF generate"]
    assert (row.ours, row.theirs, row.ratio, row.verdict) == (200, 100, 1.5, "stretch")


def test_what_is_missing_says_why() -> None:
    found = rows(made_up())
    row = found["decode, 8 at a time, bf16 against the official JAX sampler"]
    assert (row.ours, row.theirs, row.verdict, row.why) == (200, None, "unknown", "Official: was killed")
    assert found["warm start to ready, small, bf16"].why == "Roost, anew: was not measured"
    assert not any("vLLM" in title for title in found), "that family was not asked for"


@pytest.mark.parametrize(
    ("lower", "ratio", "verdict", "short_by"),
    [
        (False, 3.0, "stretch", 0),
        (False, 2.0, "reached", 0),
        (False, 1.5, "missed", 0.25),
        (True, 1.0, "stretch", 0),
        (True, 2.0, "reached", 0),
        (True, 3.0, "missed", 0.5),
    ],
)
def test_bounds_from_below_and_above(lower: bool, ratio: float, verdict: str, short_by: float) -> None:
    ref = plan.Ref("decode 8", "hf", "step_ms")
    goal = plan.Goal("hf", "a goal", ref, ref, 2.0, 1.5 if lower else 3.0, lower)
    assert judge.compare(goal, ratio) == (verdict, short_by)


def test_a_goal_of_one_number() -> None:
    row = rows(made_up())["warm start to ready, demo model"]
    assert (row.ratio, row.verdict) == (5.0, "reached")
    assert page.cells(row)[1:] == ("5.00 s", "–", "5.00 s", "≤ 5 s", "≤ 3 s", "reached")


def test_who_agrees_with_themselves() -> None:
    hf, roost = judge.agreements(made_up())
    assert (hf.same, hf.apart, hf.handed_out, hf.of) == ([False], [0.75], [1], 2)
    assert (roost.same, roost.apart) == ([True], [0.0])
    lines = list(page.agreement_rows([hf, roost]))
    assert lines[1] == ["HF, nano", "WRONG: other tokens, logprobs 0.8 apart", "1 of 2"]
    assert lines[2] == ["Roost, nano", "same tokens, logprobs the same", "all"]


# --- the page


def test_the_page_is_written_from_json_alone(tmp_path: Path) -> None:
    kept = orjson.loads(orjson.dumps(made_up()))
    run.write_page(kept, tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "![tokens per second](RESULTS.svg)" in text
    assert "| decode, 8 at a time, bf16 against HF generate | 200 tok/s | 100 tok/s | 1.50x | ≥ 1.2x | ≥ 1.5x |" in text
    assert "| Roost, bf16 | decode 8 | 200 | – | – | 1.50 |" in text
    assert "| Roost, bf16 | 1,234,567 |" in text
    assert "2026-11-25, tree 0123456, 3 rounds, 2 minutes." in text
    bars = (tmp_path / "RESULTS.svg").read_text()
    assert "prefers-color-scheme: dark" in bars
    assert ">HF</text>" in bars
    assert not any(line.startswith("|") and line.count("|") < 4 for line in text.splitlines())


def test_jobs_come_first_on_the_page_with_their_latencies(tmp_path: Path) -> None:
    def job(seconds: float, **more: float) -> dict[str, float]:
        times = {"ttft_p50_ms": 100.0, "ttft_p99_ms": 200.0, "itl_p50_ms": 5.0, "itl_p99_ms": 50.0}
        return {"job_s": seconds, "output_tokens_per_s": 4096 / seconds, "peak_gb": 1.5, **times, **more}

    document = made_up()
    document["runs"] |= {
        "arrivals": {"roost bf16": [job(50, rate=0.75)]},
        "job 32": {"hf": [job(36), job(38)], "roost bf16": [job(30), job(34)]},
    }
    text = page.markdown(document, {})
    first = "| Roost, bf16 | 32.0 | 129 | 100 | 200 | 5.00 | 50.0 | 1.50 |"
    places = [text.index(part) for part in ("### 32 requests of 512 + 128", first, "| HF | 37.0 |", "## Goals")]
    assert places == sorted(places)
    assert "### Poisson arrivals, the same lengths: 0.75 requests per second" in text
    assert next(table.title for table in page.tables(document)) == plan.JOBS["job 32"]


def test_a_job_is_judged_by_its_speed_and_by_its_phases() -> None:
    document = made_up()
    document["options"]["families"] = ["jobs"]
    document["runs"] = {
        "job 32": {
            "job roost bf16": [{"job_s": 33.0, "output_tokens_per_s": 120.0}],
            "job roost bf16 throughput": [{"job_s": 36.0}],
            "job vllm serve": [{"job_s": 40.0, "output_tokens_per_s": 100.0}],
        },
        "phases 32": {"job roost bf16": [{"phases_s": 30.0}]},
    }
    found = rows(document)
    row = found["job, 32 × (512 + 128), bf16 against `vllm serve` (Llama)"]
    assert (row.ratio, row.verdict) == (1.2, "reached")
    row = found["job, 32 × (512 + 128), against prompts alone + tokens alone, bf16"]
    assert (row.ratio, row.verdict) == (1.1, "stretch")
    row = found["job, 32 × (512 + 128), against prompts alone + tokens alone, bf16, for throughput"]
    assert (row.ratio, row.verdict) == (1.2, "missed")


def test_targets_are_a_curve_of_latency_against_throughput(tmp_path: Path) -> None:
    document = made_up()
    document["options"]["families"] = ["target"]
    document["entrants"] |= {name: {"title": name} for name in plan.TARGETS}
    document["runs"] = {
        plan.TARGET_TASK: {
            name: [{"output_tokens_per_s": rate, "itl_p99_ms": 10.0 * place}]
            for place, (name, rate) in enumerate(zip(plan.TARGETS, (200.0, 250.0, 300.0), strict=True), 2)
        }
    }
    row = rows(document)["32 at a time, int8, --itl-target-ms 0 against the default: output tokens"]
    assert (row.ours, row.theirs, row.ratio) == (300.0, 250.0, 1.2)
    row = rows(document)["32 at a time, int8, --itl-target-ms 20 against the default: time between tokens, p99"]
    assert (row.ours, row.theirs) == (20.0, 30.0)
    run.write_page(document, tmp_path / "RESULTS.md")
    assert "(RESULTS-targets.svg)" in (tmp_path / "RESULTS.md").read_text()
    curve = (tmp_path / "RESULTS-targets.svg").read_text()
    assert ">250 tok/s, 30 ms</text>" in curve
    assert ">--itl-target-ms 0</text>" in curve
    del document["runs"][plan.TARGET_TASK]["job roost int8"], document["runs"][plan.TARGET_TASK]["job roost int8 20 ms"]
    assert page.draw_targets(document) is None, "one point is no curve"


def test_nothing_measured_is_a_page_without_bars(tmp_path: Path) -> None:
    run.write_page(made_up(runs={}), tmp_path / "RESULTS.md")
    assert "RESULTS.svg" not in (tmp_path / "RESULTS.md").read_text()
    assert not (tmp_path / "RESULTS.svg").exists()


def test_tables_for_the_terminal() -> None:
    goals, agreed = page.tables(made_up())
    assert goals.row_count == len(rows(made_up()))
    assert agreed.row_count == 2
