"""Settings of a simulated device."""

import pytest
from roost.engine import ConfigError, EngineConfig, HostGroup, Simulation
from roost.engine.types.config import Fault, FaultKind


def test_a_device_alone_has_its_rooflines_pace() -> None:
    assert Simulation.parse("v6e") == Simulation("v6e", device="v6e")


def test_options_follow_a_device_or_stand_alone() -> None:
    text = "h100, jitter=0.1, output_tokens=50, fault=stuck@30, efficiency=0.5"
    fault = Fault(FaultKind.STUCK, 30)
    expected = Simulation(text, device="h100", efficiency=0.5, jitter=0.1, output_tokens=50, fault=fault)
    assert Simulation.parse(text) == expected
    pace = Simulation.parse("step_ms=9.8,prefill_tokens_per_s=40000")
    assert (pace.device, pace.step_ms, pace.prefill_tokens_per_s) == ("v5e", 9.8, 40_000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v5e,speed=3", "not 'speed=3'"),
        ("v5e,v6e", "not 'v6e'"),
        ("step_ms=0", "step_ms=a positive number, not 'step_ms=0'"),
        ("step_ms=nan", "step_ms=a positive number"),
        ("step_ms=fast", "not 'step_ms=fast'"),
        ("v5e,jitter=1", "jitter=a number from 0, below 1"),
        ("efficiency=1.1", "efficiency=a number above 0, at most 1"),
        ("output_tokens=0.5", "output_tokens=a positive integer"),
        ("fault=stuck", "fault=stuck|slow|dying@STEPS"),
        ("fault=lazy@3", "fault=stuck|slow|dying@STEPS"),
    ],
)
def test_an_error_names_the_option_and_what_it_takes(text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=r"^simulate takes ") as caught:
        Simulation.parse(text)
    assert expected in str(caught.value)


def test_several_hosts_cannot_be_simulated() -> None:
    with pytest.raises(ConfigError, match="one host"):
        EngineConfig(simulate=Simulation.parse("v5e"), hosts=HostGroup("localhost", 1, 2, 0))
