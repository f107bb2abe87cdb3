"""The page of `roost report`."""

from typing import Any

from roost.server.commands.report.page import as_page


def page_of(**parts: Any) -> str:
    """Returns the page of some parts, each of which has taken a minute."""
    found = {name: {**part, "seconds": 60.0, "problems": []} for name, part in parts.items()}
    return as_page({"problems": [], "without_kernels": [], "parts": found})


def test_times_of_a_profile_are_those_of_its_steps() -> None:
    """And not that of the whole part, which also loads the model."""
    page = page_of(
        profile={
            "folder": "profile",
            "requests": 2,
            "steps": 10,
            "tokens_per_request": 20,
            "steps_seconds": 2.0,
            "busy_seconds": 1.5,
            "operations": [{"name": "fusion.1", "seconds": 1.0, "num_runs": 10}],
        }
    )
    assert "20 tokens each, 100.00 ms a token; the device was busy for 75% of the time" in page
    assert "Took 60 s." in page
    assert "| --- | --- | --- |\n| `fusion.1` | 1000.00 | 10 |" in page


def test_a_page_says_whether_a_program_compiled_without_the_chip_was_found() -> None:
    found = {"is_found": False, "ahead_seconds": 21.4, "start_seconds": 19.6}
    assert "for v6e, without the chip, in 21 s **was not found** in" in page_of(ahead={"chip": "v6e", **found})
    assert "by another process, on this device, in 21 s **was found** in" in page_of(
        ahead={"chip": None, **found, "is_found": True}
    )
