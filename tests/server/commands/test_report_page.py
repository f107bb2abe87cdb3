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
    assert "| --- | ---: | ---: |\n| `fusion.1` | 1000.00 | 10 |" in page


def test_only_columns_of_numbers_are_aligned_to_the_right() -> None:
    page = page_of(demo={"checks": {"batch": {"text": "4 of 4 are equal", "is_right": True}}})
    assert "| --- | --- | --- |\n| batch | 4 of 4 are equal | yes |" in page
