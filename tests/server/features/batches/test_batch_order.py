"""Lines with common prefixes run next to each other, and long and short ones in turn."""

import numpy as np
import pytest
from roost.server.features.batches import file_routes
from roost.server.features.batches.batch_lines import run_order
from roost.server.features.batches.file_routes import InputCheck
from roost.server.schemas.json_limits import decode_json


def test_lines_of_a_group_are_neighbours_and_mix_lengths() -> None:
    groups = np.array([7, 9, 7, 7, 9, 7, 1], np.uint64)
    num_tokens = np.array([10, 5, 40, 20, 6, 30, 1], np.uint64)
    assert run_order(groups, num_tokens).tolist() == [2, 0, 5, 3, 4, 1, 6]
    assert run_order(groups[:0], num_tokens[:0]).tolist() == []


def test_an_upload_is_ordered_by_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_routes, "SEGMENT_LINES", 4)
    check = InputCheck(1000, decode_json)
    prompts = ["a", "b", "a", "b", "c", "a", "c"]
    lines = [
        b'{"custom_id": "%d", "method": "POST", "url": "/v1/completions", "body": {"prompt": "%s", "max_tokens": %d}}\n'
        % (number, prompt.encode(), number + 1)
        for number, prompt in enumerate(prompts)
    ]
    assert check.add(lines[:3]) == []
    assert check.add(lines[3:6]) == [[2, 0, 3, 1]]
    assert check.add(lines[6:]) == []
    assert check.finish() == ("/v1/completions", [2, 0, 1])
    assert (check.num_lines, check.num_bytes) == (7, sum(map(len, lines)))
