"""Lines of the audit log about rejected keys."""

import json
from collections import Counter

import pytest
from roost.server.observability.logging import RejectedKeys


def written(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_an_address_has_ten_lines_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    rejected = RejectedKeys(lambda: now)
    for second in range(0, 120, 4):
        now = float(second)
        rejected.write("10.0.0.1", "/v1/models", [b"wrong"])
        rejected.write("10.0.0.2", "/v1/models", [b"wrong"] * (second % 20 == 0))
    assert Counter(line["client"] for line in written(capsys)) == {"10.0.0.1": 20, "10.0.0.2": 6}


def test_floods_from_many_addresses_share_a_count(capsys: pytest.CaptureFixture[str]) -> None:
    rejected = RejectedKeys(lambda: 0.0)
    for number in range(5000):
        rejected.write(f"10.0.{number // 256}.{number % 256}", "/v1", [b"wrong"])
    assert len(written(capsys)) == 4096 + 10


def test_a_key_is_told_by_its_hash(capsys: pytest.CaptureFixture[str]) -> None:
    for path, keys in (("/a", [b"secret", b""]), ("/b", [b"secret", b"other"]), ("/" + "c" * 1000, [b""])):
        RejectedKeys().write("10.0.0.1", path, keys)
    first, second = written(capsys)
    assert (first["logger"], first["event"], first["path"]) == ("roost.audit", "rejected_key", "/a")
    assert [first["key_hashes"][0]] == second["key_hashes"][:1]
    assert len({*first["key_hashes"], *second["key_hashes"]}) == 2
    assert "secret" not in str(first) + str(second)
