"""The page of `roost report`."""

from typing import Any

from roost.server.commands.report.page import as_page


def page_of(**parts: Any) -> str:
    """Returns the page of some parts, each of which has taken a minute."""
    found = {name: {**part, "seconds": 60.0, "problems": []} for name, part in parts.items()}
    return as_page({"problems": [], "without_kernels": [], "parts": found})


def test_a_part_becomes_a_table_of_its_values_and_one_of_its_rows() -> None:
    rows = [{"name": "fusion.1", "distance": {"relative": 0.00123456}}, {"name": "fusion.2", "distance": None}]
    page = page_of(profile={"operations": rows, "tokens": 1024, "is_right": False, "shape": [1, 512], "busy": None})
    assert "| name | distance.relative | distance |\n| --- | --- | --- |\n| fusion.1 | 0.001235 | – |" in page
    assert "| fusion.2 | – | – |\n\n| what | value |\n| --- | --- |\n| tokens | 1,024 |\n| is_right | **no** |" in page
    assert "| shape | 1, 512 |\n| busy | – |" in page
    assert "Took 60 s." in page
