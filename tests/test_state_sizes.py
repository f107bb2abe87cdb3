"""The sizes of states that the documentation names are those of the configurations."""

import re
from pathlib import Path

import numpy as np
import pytest
from roost.engine import DeviceFacts, EngineConfig, open_model, state_bytes
from roost.engine.model.config import PRESETS, ModelConfig
from roost.engine.types.snapshot import SavedStateFormat, Snapshot, SnapshotFormat
from roost.server.commands.options import PlanOptions
from roost.server.commands.plan import plan
from roost.server.run.startup_message import summary
from unpacked_states import saved_state

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "deploy" / "README.md",
    *sorted((ROOT / "benchmarks").glob("*.md")),
    *sorted((ROOT / "configs").rglob("*.md")),
]
MIB = 2**20
DTYPES = {"bfloat16": 2, "float32": 4}

_ABOUT_STATES = re.compile(r"\bstates?\b|\bper request\b|\brecurrent part\b", re.IGNORECASE)
_SIZE = re.compile(r"(\d+(?:\.\d+)?) (Mi?B)\b")


def window_bytes(config: ModelConfig, dtype_bytes: int) -> int:
    """Bytes of the keys and values of a full window."""
    return config.block_types.count("attention") * 2 * config.window * config.head_dim * dtype_bytes


def sizes(config: ModelConfig, dtype_bytes: int) -> tuple[str, str, str]:
    """The recurrent part, the window and the whole state, as the documentation writes them."""
    whole, window = state_bytes(config, dtype_bytes), window_bytes(config, dtype_bytes)
    return f"{(whole - window) / MIB:.2f}", f"{window / MIB:.2f}", f"{whole / MIB:.1f}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", ["2b", "9b"])
def test_the_table_is_that_of_the_configurations(model: str, dtype: str) -> None:
    row = " | ".join((model.upper(), dtype, *sizes(PRESETS[model], DTYPES[dtype])))
    assert f"| {row} |" in (ROOT / "docs" / "explanation" / "constant-size-state.md").read_text()


def test_the_layers_are_those_of_the_configurations() -> None:
    text = " ".join((ROOT / "docs" / "explanation" / "constant-size-state.md").read_text().split())
    (r2, a2, w2), (r9, a9, w9) = (
        (config.block_types.count("recurrent"), config.block_types.count("attention"), config.lru_width)
        for config in (PRESETS["2b"], PRESETS["9b"])
    )
    assert f"2B has {r2} such layers of {w2:,} channels, 9B has {r9} of {w9:,}" in text
    token2, token9 = (window_bytes(PRESETS[name], 2) // 2048 // 1024 for name in ("2b", "9b"))
    assert f"2B has {a2} such layers, so a token takes {token2} KiB; 9B has {a9}, so a token takes {token9} KiB" in text


def test_readme_names_both_states() -> None:
    text = (ROOT / "README.md").read_text()
    for model in ("2b", "9b"):
        assert f"{sizes(PRESETS[model], 2)[2]} MiB" in text
    assert "docs/explanation/constant-size-state.md" in text


def test_no_page_names_another_size_or_unit() -> None:
    """In the sentences about states of 2B and 9B, on every page."""
    known = {size for model in ("2b", "9b") for n in DTYPES.values() for size in sizes(PRESETS[model], n)}
    known |= {f"{window_bytes(PRESETS['2b'], 2) / 2048 * 64 / MIB:.2f}", "941", "940"}  # of 1000 states
    found = [
        f"{path.relative_to(ROOT)}: {number} {unit}: {sentence[:80]}"
        for path in PAGES
        for sentence in re.split(r"(?<=[.:])\s+(?=[A-Z#|])", " ".join(path.read_text().split()))
        if re.search(r"\b[29]B\b", sentence) and _ABOUT_STATES.search(sentence)
        for number, unit in _SIZE.findall(sentence)
        if unit != "MiB" or number not in known
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("model", ["2b", "9b"])
def test_the_banner_and_the_plan_say_the_same(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = f"{sizes(PRESETS[model], 2)[2]} MiB"
    lines = summary(open_model(f"random:{model}"), EngineConfig(), 8, model, "", DeviceFacts("cpu", 1, None))
    assert any(whole in line for line in lines)
    unset = dict.fromkeys(("quantize", "kv_dtype", "speculative_config"))
    plan(PlanOptions(model=f"random:{model}", device="v5p", settings=unset))
    assert whole in capsys.readouterr().out


@pytest.mark.parametrize(("length", "kept"), [(64, 64), (2048, 2048), (4096, 2048)])
def test_an_exported_file_has_the_state_the_tokens_and_a_header(length: int, kept: int) -> None:
    """Of the demo model's shape; a history that is shorter than the window has fewer keys and values."""
    config = open_model("demo").config
    layers, rings = config.block_types.count("recurrent"), config.block_types.count("attention")
    h = np.zeros((layers, config.lru_width), np.float32)
    conv = np.zeros((layers, config.conv_width - 1, config.lru_width), np.float16)
    block = np.zeros((64, rings, 2, config.head_dim), np.float16)
    shapes = [(array.shape, array.dtype.name) for array in (h, conv)]
    hidden = ((config.width,), "float16")
    snapshot_format = SnapshotFormat(
        config.window, dict(zip(("h", "conv"), shapes, strict=True)), (block.shape[1:], "float16"), hidden
    )
    kind = SavedStateFormat("demo", config.vocab_size, snapshot_format)
    window = min(kept, config.window)
    state = saved_state([1] * length, Snapshot(length, (h, conv), (block,) * (window // 64)))
    expected = state_bytes(config, 2) - window_bytes(config, 2) * (config.window - window) // config.window + 4 * length
    assert 0 < len(kind.export(state)) - expected < 1500
