"""Several processes, each with its own devices, serve one model as hosts of a group."""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from ports import free_ports
from server_process import ServerProcess, launched, start

pytestmark = pytest.mark.mesh

TINY_MODEL = Path(__file__).parents[1] / "golden" / "tiny-a" / "hf"


@contextmanager
def group(model: str, count: int, mesh: str, *options: str) -> Iterator[tuple[ServerProcess, list[Any]]]:
    """Yields a leader that is ready and its followers, with two devices each, and ends all of them afterwards."""
    common = (model, "--mesh", mesh, "--coordinator", f"127.0.0.1:{free_ports()}", "--num-hosts", str(count), *options)
    with ExitStack() as stack:
        followers = []
        for index in range(1, count):
            follower = start(
                "serve", *common, "--host-index", str(index), stderr=subprocess.DEVNULL, JAX_NUM_CPU_DEVICES="2"
            )
            followers.append(follower)
            stack.callback(follower.communicate)
            stack.callback(follower.kill)
        yield stack.enter_context(launched(*common, "--host-index", "0", JAX_NUM_CPU_DEVICES="2")), followers


def chat(url: str, **fields: Any) -> str:
    body = {"model": "demo", "messages": [{"role": "user", "content": "My name is Ann. What is my name?"}], **fields}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).raise_for_status().json()
    return reply["choices"][0]["message"]["content"]


def test_a_chat_over_two_hosts_is_that_of_one_device() -> None:
    """A second turn hits the prefix cache; both hosts exit cleanly when the leader is stopped."""
    options = ("--slots", "4", "--prefill-chunk", "64", "--dtype", "float32")
    with launched("demo", *options) as alone:
        expected = chat(alone.url, temperature=0)
    with group("demo", 2, "data=2,model=2", *options) as (leader, followers):
        assert [chat(leader.url, temperature=0) for _ in range(3)] == [expected] * 3
        for process in (leader.process, *followers):  # as when each Pod is stopped
            process.send_signal(signal.SIGTERM)
        assert [leader.ends(), *(follower.wait(120) for follower in followers)] == [0, 0], leader.log.read_text()


def endless(url: str) -> dict[str, Any]:
    return {
        "url": f"{url}/generate",
        "json": {"token_ids": [2, 5, 9], "ignore_eos": True, "max_tokens": 10**6, "stream": True},
    }


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_losing_a_host_is_reported_and_ends_the_group(number: signal.Signals) -> None:
    """A host is lost in the middle of a stream, which ends with an error; the other followers exit too."""
    with group(str(TINY_MODEL), 4, "data=1,model=8", "--slots", "2", "--prefill-chunk", "64") as (leader, followers):
        with httpx.Client(timeout=60) as client, client.stream("POST", **endless(leader.url)) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: {")
            began = time.monotonic()
            followers[1].send_signal(number)
            rest = list(lines)
        assert any('"error"' in line for line in rest), rest[-3:]
        assert time.monotonic() - began < 60
        assert leader.ends() == 1
        assert "a host of the group has been lost" in leader.log.read_text()
        assert all(follower.wait(120) != 0 for follower in (followers[0], followers[2]))


def test_followers_end_when_the_leader_is_lost() -> None:
    with group(str(TINY_MODEL), 2, "data=2,model=2", "--slots", "2", "--prefill-chunk", "64") as (leader, followers):
        with httpx.Client(timeout=60) as client, client.stream("POST", **endless(leader.url)) as stream:
            assert next(stream.iter_lines()).startswith("data: {")
            leader.process.kill()
        assert followers[0].wait(120) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--num-hosts", "2"), "several hosts need both --coordinator and --num-hosts"),
        (("--coordinator", "a:1"), "several hosts need both --coordinator and --num-hosts"),
        (
            ("--coordinator", "a:1", "--num-hosts", "2", "--host-index", "2"),
            "--host-index must be less than --num-hosts (2)",
        ),
        (("--coordinator", "nowhere", "--num-hosts", "2"), "--coordinator must match"),
        (("--mesh", "model=two"), "--mesh must be auto, or like data=2,model=4"),
        (("--mesh", "data=2,model=2"), "mesh data=2,model=2 takes 4 devices, but there are 1"),
    ],
)
def test_invalid_setup_is_reported_in_one_line(options: tuple[str, ...], says: str) -> None:
    process = start("serve", str(TINY_MODEL), *options, "--port", "0")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 or process.returncode == 2
    assert says in stderr
    assert "Traceback" not in stderr
