"""The chart of speed against length: how speeds follow from arrivals, what is kept, and what is drawn.

Neither a server nor llama.cpp runs here.
"""

from pathlib import Path
from typing import Any

import draw_pictures
import length_chart
import orjson
import pytest
import roost_at_length
import roost_http
import svg

DOCUMENT: dict[str, Any] = {
    "started": "2026-11-26T12:00:00+00:00",
    "tree": "0123456789",
    "machine": {"cpu": "A <CPU>", "load_average": 0.1},
    "options": {"rows": 8, "lengths": [256, 512, 1024], "threads": 2, "window": 64},
    "curves": {"Roost, int8": [100.0, 101.0, 99.0], "Llama in llama.cpp, Q8_0": [98.0, 60.0, 30.0]},
}


def stream(*seen: tuple[float, int]) -> Any:
    """Returns a stream with events at these times, each with a number of tokens."""
    found = roost_http.Stream()
    found.times, found.counts = [now for now, _ in seen], [count for _, count in seen]
    return found


def test_a_speed_counts_while_all_streams_are_within_the_stretch() -> None:
    early, late = stream((1, 2), (2, 2), (3, 2), (4, 2)), stream((2, 2), (3, 2), (4, 2), (5, 2))
    assert roost_at_length.reached(early, 5) == 3
    assert early.tokens(2, 4) == 4
    assert roost_at_length.rate([early, late], 2, 8) == (4 + 4) / 2  # from the late one's start to the early one's end


def test_streams_that_never_grow_together_have_no_speed() -> None:
    with pytest.raises(RuntimeError, match="no moment"):
        roost_at_length.rate([stream((1, 2), (2, 2)), stream((3, 2), (4, 2))], 2, 4)


def test_a_stream_counts_the_tokens_of_each_event() -> None:
    found = roost_http.Stream()
    for now in range(4):
        chunk = orjson.dumps({"choices": [{"token_ids": [1, 2]}]})
        found.feed(b"data: " + chunk + b"\n\n", float(now))
    assert (found.times, found.counts, found.total) == ([0.0, 1.0, 2.0, 3.0], [2, 2, 2, 2], 8)


def test_curves_of_an_earlier_run_are_kept_if_its_options_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "length.json"
    assert length_chart.kept_curves(path, DOCUMENT["options"]) == {}
    path.write_bytes(orjson.dumps(DOCUMENT))
    assert length_chart.kept_curves(path, DOCUMENT["options"]) == DOCUMENT["curves"]
    assert length_chart.kept_curves(path, {"rows": 1}) == {}


def test_the_chart_names_curves_machine_date_and_tree() -> None:
    drawn = draw_pictures.draw_lengths(DOCUMENT)
    for text in (
        "Roost",
        "int8: 99",
        "Llama in llama.cpp",
        "Q8_0: 30",
        "A &lt;CPU&gt;",
        "2026-11-26",
        "0123456789",
        "1,024",
    ):
        assert text in drawn
    assert "prefers-color-scheme: dark" in drawn


def test_the_page_has_a_table_of_all_curves() -> None:
    text = length_chart.page(DOCUMENT)
    assert "| tokens/s at | 256 | 512 | 1,024 |\n| --- | --- | --- | --- |\n| Roost, int8 | 100 | 101 | 99 |" in text
    assert "2026-11-26, tree 0123456789" in text


def test_neighbouring_labels_are_moved_apart() -> None:
    assert svg.apart({"a": 10.0, "b": 12.0, "c": 50.0}, 16) == {"a": 10.0, "b": 26.0, "c": 50.0}
