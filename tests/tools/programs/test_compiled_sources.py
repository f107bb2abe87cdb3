"""The fingerprint of compiled programs: what it covers, and what it leaves out."""

import re
from pathlib import Path

import pytest
from compiled_sources import FOLDERS, ROOT, code, imported, main, sources

SOURCE = '''"""Module."""

def f(x):
    """Function."""
    # a comment
    return x  + 1

TEXT = "kept"
'''


def test_comments_docstrings_and_layout_do_not_count() -> None:
    changed = SOURCE.replace("Module", "Another").replace("a comment", "words").replace("x  + 1", "x + 1  # why")
    assert code(changed.replace("\n\nTEXT", "\n\n\n\nTEXT")) == code(SOURCE)


@pytest.mark.parametrize(("old", "new"), [("x  + 1", "x + 2"), ('"kept"', '"other"'), ("return", "yield")])
def test_code_counts(old: str, new: str) -> None:
    assert code(SOURCE.replace(old, new)) != code(SOURCE)


@pytest.mark.parametrize("folder", FOLDERS)
def test_all_that_a_folder_depends_on_is_found(folder: str) -> None:
    found = {str(path.relative_to(ROOT)) for path in sources((ROOT / folder).glob("*.py"))}
    assert {"kernels/backends.py", "engine/worker/steps.py", "engine/model/griffin.py"} <= found
    assert not any(name.startswith(("server/", "kernels/native/")) for name in found)


def test_relative_imports_are_followed() -> None:
    found = {str(path.relative_to(ROOT)) for path in imported(ROOT / "kernels" / "backends.py")}
    assert {
        "kernels/backend.py",
        "kernels/native/layers.py",
        "kernels/window_attention/pallas_tpu_prefill.py",
    } <= found


def test_a_folder_is_unchanged_once_its_fingerprint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tests" / "tpu"
    folder.mkdir(parents=True)
    (folder / "test_it.py").write_text("x = 1\n")
    (tmp_path / "requirements").mkdir()
    for lock in FOLDERS["tests/tpu"].locks:
        (tmp_path / "requirements" / f"{lock}.txt").write_text(lock)
    monkeypatch.setattr("compiled_sources.ROOT", tmp_path)
    assert main(["tests/tpu"]) == 1
    assert main(["tests/tpu", "--write"]) == 0
    assert re.fullmatch(r"[0-9a-f]{64}\n", (folder / "compiled.sha256").read_text())
    assert main(["tests/tpu"]) == 0
    (folder / "test_it.py").write_text("x = 2\n")
    assert main(["tests/tpu"]) == 1
