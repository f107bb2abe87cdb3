"""Text that is printed once a server is ready."""

from pathlib import Path

import pytest
from roost.engine import DeviceFacts, EngineConfig, MeshShape, Speculation, open_model, shown_bytes, state_bytes
from roost.engine.checkpoint.source import DEMO_DIRECTORY
from roost.server.run.startup_message import greeting, summary

CONFIG = EngineConfig()
CPU = DeviceFacts("cpu", 1, None, "cpu", None)


def summary_of(
    source: str = "demo", config: EngineConfig = CONFIG, device: DeviceFacts = CPU, store: str = "memory:"
) -> dict[str, str]:
    """The values by their names."""
    lines = summary(open_model(source), config, 8, "it", "http://127.0.0.1:8000", device, store)
    return {name: value.strip() for name, value in (line.split(maxsplit=1) for line in lines)}


def test_the_summary_says_that_random_weights_are_noise() -> None:
    assert summary_of()["model"] == f"it, {DEMO_DIRECTORY}"
    assert "noise" in summary_of(f"random:{DEMO_DIRECTORY}/config.json")["model"]


def test_the_summary_lists_what_is_served() -> None:
    config = EngineConfig(compile_cache=Path("/programs"), state_cache_dir=Path("/states"))
    values = summary_of(config=config)
    assert values["address"] == "http://127.0.0.1:8000/v1"
    assert "bfloat16" in values["parameters"]
    assert values["slots"].startswith("8, ")
    assert values["slots"].endswith(" together")
    assert values["capacity"] == "8 requests at a time, 256 more may wait"
    assert values["programs"] == "/programs"
    assert values["prefixes"] == "cached in an eighth of free memory and 16 GiB of /states"
    assert "Ctrl-C" in values["stop"]
    assert summary_of(config=EngineConfig(state_cache_gib=0.0))["prefixes"] == "not cached"
    assert "not kept" in summary_of()["programs"]


def test_the_summary_says_what_a_stop_loses() -> None:
    assert summary_of()["store"].endswith("files and batches are in memory, until the server stops (--store)")
    assert summary_of()["prefixes"] == "cached in an eighth of free memory"
    values = summary_of(store="postgresql://db/roost")
    assert values["store"] == "postgresql://db/roost"
    assert values["prefixes"].endswith(", until the server stops (--state-cache-dir)")


def test_with_speculation_a_slot_holds_the_last_tokens_too() -> None:
    values = summary_of("random:2b", EngineConfig(speculation=Speculation()))
    assert f"{shown_bytes(state_bytes(open_model('random:2b').config, 2) + 4 * 4096)} of state each" in values["slots"]
    assert values["slots"] != summary_of("random:2b")["slots"]


@pytest.mark.parametrize(
    ("device", "shards", "shown"),
    [
        (CPU, MeshShape(), "CPU with native kernels"),
        (CPU._replace(num_devices=2), None, "2 x CPU without native kernels: several devices share the cores"),
        (CPU._replace(why_no_native_kernels="too old"), MeshShape(), "CPU without native kernels: too old"),
        (DeviceFacts("NVIDIA H100", 1, 0, "gpu"), MeshShape(), "NVIDIA H100 (gpu)"),
        (DeviceFacts("TPU v5 lite", 4, 0, "tpu"), None, "4 x TPU v5 lite (tpu)"),
    ],
)
def test_the_summary_names_the_device_and_its_kernels(
    device: DeviceFacts, shards: MeshShape | None, shown: str
) -> None:
    assert summary_of(config=EngineConfig(shards=shards), device=device)["device"] == shown


@pytest.mark.parametrize(
    ("address", "page"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/"),
        ("https://0.0.0.0:443", "https://localhost:443/"),
        ("http://[::]:8000", "http://localhost:8000/"),
        ("http://[::1]:8000", "http://[::1]:8000/"),
    ],
)
def test_the_greeting_has_an_address_that_a_browser_can_open(address: str, page: str) -> None:
    assert greeting(address).endswith(f" is ready. Chat in a browser: {page}")


def test_the_state_is_as_large_as_its_dtype_makes_it() -> None:
    assert "16.4 MiB" in summary_of("random:2b")["slots"]
    assert "16.4 MiB" not in summary_of("random:2b", EngineConfig(dtype="float32"))["slots"]
