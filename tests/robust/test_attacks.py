"""The hostile-neighbour suite without a server: what it sends is allowed, and what it measures is judged."""

from dataclasses import replace
from typing import Any

import attacks
import neighbours
import orjson
import pytest
import store_attacks
import store_victim
from roost.server.features.batches.file_routes import InputCheck
from roost.server.schemas.json_limits import decode_json

MAKERS = (
    attacks.escaped_references,
    attacks.chained_rules("\r"),
    attacks.nested_grammars,
    attacks.nested_json_text,
    attacks.nested_regex,
    attacks.nested_quantifiers,
    attacks.many_stop_strings,
    attacks.many_bad_words,
    attacks.repeated_ids,
    attacks.echoes,
    attacks.prompt_logprobs,
    attacks.million_prompts,
    attacks.truncated_text,
    attacks.many_spaces,
    attacks.many_ids,
    attacks.many_messages,
    attacks.unknown_fields,
    attacks.long_mistake,
    attacks.nested_tools,
    attacks.long_prompt,
    attacks.unknown_prompt,
    attacks.tool_schemas,
    attacks.large_metadata,
    attacks.empty_arrays,
    attacks.packed_messages(58_000),
)


@pytest.fixture
def outcome() -> Any:
    """Nothing was felt of an attack."""
    seen = neighbours.Window(first=[0.01] * 5, gap=[0.001] * 20, chat=[0.02] * 5, health=[0.002] * 50, peak_bytes=2**30)
    return neighbours.Outcome(attacks.ATTACKS[0], seen, seen, 2**30, 2**30, {"400": 3}, [])


def test_names_are_unique() -> None:
    names = [attack.name for attack in attacks.ATTACKS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("make", MAKERS)
def test_a_body_is_json_that_the_server_has_room_for(make: Any) -> None:
    content = attacks.encoded(make())
    assert len(content) <= attacks.MAX_BODY
    assert isinstance(orjson.loads(content), dict)


@pytest.mark.parametrize("make", ["heavy_lines", "grammar_lines", "echoing_lines", "long_text_lines", "small_lines"])
def test_a_file_of_an_attack_is_one_that_the_server_takes(make: str) -> None:
    check = InputCheck(attacks.MAX_BODY, decode_json)
    lines = getattr(store_attacks, make)()
    check.add(lines)
    assert check.finish()[0] == "/v1/completions"
    assert sum(map(len, lines)) < neighbours.STORE_GIB * 2**30 / 4


def test_an_attack_that_nobody_feels_misses_nothing(outcome: Any) -> None:
    assert neighbours.missed(outcome) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"first": [0.01, 0.3]}, "p99 of the victim's time to first token is 297 ms, goal 250 ms"),
        ({"gap": [0.5]}, "p99 of the victim's gap between events is 500 ms, goal 250 ms"),
        ({"chat": [0.4]}, "p99 of the victim's time of a chat is 400 ms, goal 250 ms"),
        ({"write": [0.4]}, "p99 of the victim's time of a stored write is 400 ms, goal 250 ms"),
        ({"health": [0.001, 0.2]}, "/health took 200 ms, goal 100 ms"),
        ({"peak_bytes": 2**34}, "memory grew by 15360 MiB since the start"),
        ({"batches": [store_victim.BatchRun(3.0, 0)]}, "p99 of the victim's time of a batch is 3000 ms, goal 2000 ms"),
        ({"stored_bytes": 2**34}, "the database takes 16384 MiB, goal"),
        ({"first": []}, "none of the victim's requests succeeded"),
    ],
)
def test_a_missed_goal_names_the_attack_and_the_value(outcome: Any, change: dict[str, Any], problem: str) -> None:
    (line,) = neighbours.missed(replace(outcome, window=replace(outcome.window, **change)))
    assert line.startswith(f"state with float tokens (1): {problem}")


def test_the_goal_is_three_times_a_slow_quiet(outcome: Any) -> None:
    slow = replace(outcome, quiet=replace(outcome.quiet, first=[0.2] * 5))
    for seconds, num_missed in ((0.59, 0), (0.61, 1)):
        window = replace(outcome.window, first=[seconds])
        assert len(neighbours.missed(replace(slow, window=window))) == num_missed


def test_a_status_that_is_not_expected_is_a_problem() -> None:
    attack = attacks.ATTACKS[0]
    assert neighbours.unexpected(attack, {"400": 5, "503": 1}) == []
    assert neighbours.unexpected(attack, {"200": 2, "0": 1}) == [
        "the attacker got 2 times 200",
        "the attacker got 1 times no response",
    ]


def test_a_cell_cannot_end_its_row(outcome: Any) -> None:
    broken = replace(outcome, problems=["a | b\nc"])
    lines = neighbours.table([broken]).splitlines()
    assert len(lines) == 3
    assert {line.count("|") for line in lines} == {len(neighbours.HEADER) + 1}
