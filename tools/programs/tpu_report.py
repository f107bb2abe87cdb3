"""Tables of the rows that `tpu_programs.py` measures."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

type Row = dict[str, Any]

COLUMNS: Final = (
    "program", "rows", "busy", "sampling", "windows", "floor", "accessed", "over floor", "temporaries", "HBM", "fits",
    "estimate", "scheduled", "tokens/s", "kernels",
)  # fmt: skip


def seconds(row: Row) -> float:
    """Returns the slower of both estimates; infinity if the program does not fit."""
    return max(row["optimal_seconds"], row["scheduled_seconds"]) if row["fits"] else float("inf")


def speed(row: Row) -> float:
    """Returns tokens per second by the slower of both estimates."""
    return float(row["tokens"]) / seconds(row)


def cells(row: Row) -> tuple[str, ...]:
    """Returns the text of a row's columns: gigabytes, milliseconds, and tokens per second by the slower estimate.

    If a function's loops count once for want of a known end, or a kernel has no schedule, the scheduled time is a
    minimum and the speed a maximum.
    """
    floor, accessed, temp, hbm = (
        f"{row[name] / 1e9:.3f}" for name in ("floor_bytes", "bytes_accessed", "temp_bytes", "hbm_bytes")
    )
    known = (_name(row), str(row["rows"]), str(row["busy"]), row["sampling"], row["window"], floor)
    if not row["fits"]:
        return (*known, "", "", "", hbm, "no", "", "", "", "")
    ratio = f"{row['bytes_accessed'] / row['floor_bytes']:.3f}"
    at_least, at_most = ("> ", "< ") if row["without_end"] or row["without_bundles"] else ("", "")
    times = (f"{1e3 * row['optimal_seconds']:.2f} ms", f"{at_least}{1e3 * row['scheduled_seconds']:.2f} ms")
    rate = f"{at_most}{speed(row):,.0f}"
    return (*known, accessed, ratio, temp, hbm, "yes", *times, rate, str(row["custom_calls"]))


def _name(row: Row) -> str:
    """Returns the name of a row's program; of a request, with the tokens of its prompt and reply."""
    names = {"prefill": f"prefill {row['tokens']}", "mixed": "mixed 512 + 128, a request"}
    return names.get(row["program"], row["program"])


def title(row: Row) -> str:
    """Returns a line that names the model, the chip and the number of slots."""
    quantized = f", matrices in {row['quantize']}" if row["quantize"] else ""
    quantized += ", windows in int8" if row["kv_dtype"] == "int8" else ""
    name = {"2b": "RecurrentGemma 2B", "9b": "RecurrentGemma 9B"}.get(row["model"], row["model"])
    return f"{name} on one {row['chip']} chip, bfloat16{quantized}, {row['slots']:,} slots"


def as_table(rows: Sequence[Row]) -> str:
    """Returns the rows of one model and chip as a Markdown table under its title."""
    lines = [f"{title(rows[0])}; bytes in GB:", "", _line(COLUMNS), _line("---" for _ in COLUMNS)]
    return "\n".join([*lines, *(_line(cells(row)) for row in rows)])


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


class Goal(NamedTuple):
    """A figure to reach.

    Attributes:
      name: Name of the figure.
      value: Function that returns the figure from all rows; None if they don't have it.
      least, stretch: Figures to reach at least, and further on if there is one.
      limit: Figure that cannot be passed, or None.
      is_ceiling: Whether smaller is better.
    """

    name: str
    value: Callable[[Sequence[Row]], float | None]
    least: float
    stretch: float | None = None
    limit: float | None = None
    is_ceiling: bool = False


def goals() -> tuple[Goal, ...]:
    """Returns the goals for programs on one chip; times are those of the slower estimate."""
    return (*_goals_in_bfloat16(), *_goals_in_int8(), *_goals_between())


def _goals_in_bfloat16() -> tuple[Goal, ...]:
    return (
        Goal("slots, 2B on a v5e", _slots("2b", "v5e", None), 500, 540),
        Goal("slots, 9B int8 on a v5e", _slots("9b", "v5e", "int8"), 210, 230),
        Goal("slots, 2B on a v6e", _slots("2b", "v6e", None), 1300, 1450),
        Goal("2B decode on a v5e, all rows sampled with top-p, tokens/s", _decode("sampled"), 13e3, 16e3, 18e3),
        Goal("2B decode on a v5e, all rows greedy, tokens/s", _decode("greedy"), 18.5e3, 20e3, 26.6e3),
        Goal("2B decode on a v5e, temporaries of 512 rows, GB", _temporaries, 1.1, 0.3, is_ceiling=True),
        Goal("8 busy of all slots, time over a pool of 8", _eight_of_all, 1.15, 1.05, 1.0, is_ceiling=True),
        Goal("2B prefill of 512 tokens on a v5e, tokens/s", _prefill("2b", None), 40e3, 43e3, 46e3),
    )


def _goals_in_int8() -> tuple[Goal, ...]:
    """Returns the goals for matrices (`--quantize int8`) and windows (`--kv-dtype int8`) in int8."""
    both = {"quantize": "int8", "kv_dtype": "int8"}
    decode_2b, decode_9b = (f"{model} decode on a v5e" for model in ("2B", "9B"))
    prefill = "prefill of 512 tokens on a v5e, matrices in int8, tokens/s"
    return (
        Goal(
            f"{decode_2b}, 512 rows greedy, window in int8, tokens/s",
            _decode("greedy", rows=512, kv_dtype="int8"),
            22e3, 23.3e3, 26.6e3,
        ),
        Goal(
            f"{decode_2b}, 512 rows greedy, both in int8, tokens/s",
            _decode("greedy", rows=512, **both),
            27e3, 32e3, 50e3,
        ),
        Goal(
            f"{decode_2b}, 512 rows with top-p, both in int8, tokens/s",
            _decode("sampled", rows=512, **both),
            18e3, 22e3,
        ),
        Goal(
            f"{decode_9b}, 224 rows greedy, matrices in int8, tokens/s",
            _decode("greedy", model="9b", rows=224, quantize="int8"),
            9.5e3, 11.5e3, 11.4e3,
        ),
        Goal(
            f"{decode_9b}, 224 rows greedy, both in int8, tokens/s",
            _decode("greedy", model="9b", rows=224, **both),
            11e3, 11.5e3, 14e3,
        ),
        Goal("slots, 9B on a v5e, both in int8", _slots("9b", "v5e", **both), 400, 448),
        Goal(
            f"{decode_9b}, all rows greedy, both in int8, tokens/s",
            _decode("greedy", model="9b", **both),
            12e3, 13e3,
        ),
        Goal(f"2B {prefill}", _prefill("2b", "int8"), 55e3, 61e3, 92e3),
        Goal(f"9B {prefill}", _prefill("9b", "int8"), 17e3, 19.6e3, 25e3),
    )  # fmt: skip


def _goals_between() -> tuple[Goal, ...]:
    """Returns the goals for some busy slots of all, and for whole requests."""
    on_v5e = ((busy, _busy(busy)) for busy in (129, 256, 300))
    both = {"quantize": "int8", "kv_dtype": "int8"}
    request = "512 + 128 of 2B on a v5e, all slots busy"
    return (
        *(
            Goal(f"2B decode on a v5e, {busy} busy of all slots, ms", value, most, is_ceiling=True)
            for (busy, value), most in zip(on_v5e, (11, 14, 22.5), strict=True)
        ),
        Goal("2B decode on a v6e, 256 busy of all slots, tokens/s", _busy_speed(256), 33e3),
        Goal(f"{request}, ms", _mixed(), 17.0, 16.4, is_ceiling=True),
        Goal(f"{request}, both in int8, ms", _mixed(**both), 9.8, 9.5, is_ceiling=True),
    )


def _busy(busy: int) -> Callable[[Sequence[Row]], float | None]:
    return lambda rows: _milliseconds(rows, program="decode", busy=busy, sampling="greedy", window="full")


def _busy_speed(busy: int) -> Callable[[Sequence[Row]], float | None]:
    """Returns a function for the speed of a step of that many slots of 2B on a v6e."""

    def value(rows: Sequence[Row]) -> float | None:
        taken = _milliseconds(rows, chip="v6e", program="decode", busy=busy, sampling="greedy", window="full")
        return None if taken is None else 1e3 * busy / taken

    return value


def _mixed(**wanted: Any) -> Callable[[Sequence[Row]], float | None]:
    return lambda rows: _milliseconds(rows, program="mixed", **wanted)


def _milliseconds(measured: Sequence[Row], **wanted: Any) -> float | None:
    """Returns the time of 2B's row with these values and the most slots among those that fit."""
    own = _of(measured, **{"model": "2b", "chip": "v5e", "quantize": None, "fits": True, **wanted})
    return 1e3 * seconds(max(own, key=lambda row: row["slots"])) if own else None


def _of(measured: Sequence[Row], /, **wanted: Any) -> list[Row]:
    """Returns the rows with these values, and with windows in bfloat16 unless another dtype is wanted."""
    wanted = {"kv_dtype": "bfloat16", **wanted}
    return [row for row in measured if all(row[name] == value for name, value in wanted.items())]


def _slots(
    model: str, chip: str, quantize: str | None, kv_dtype: str = "bfloat16"
) -> Callable[[Sequence[Row]], float | None]:
    def value(rows: Sequence[Row]) -> float | None:
        own = _of(rows, model=model, chip=chip, quantize=quantize, kv_dtype=kv_dtype)
        most = max((row["slots"] for row in own), default=None)
        return most if all(row["fits"] for row in own if row["slots"] == most) else None

    return value


def _decode(sampling: str, **wanted: Any) -> Callable[[Sequence[Row]], float | None]:
    """Returns a function for the speed of the largest decode program on a v5e, of 2B unless another model is wanted."""
    wanted = {"model": "2b", "quantize": None, **wanted}
    return lambda rows: _speed_of_largest(rows, program="decode", sampling=sampling, window="full", **wanted)


def _prefill(model: str, quantize: str | None) -> Callable[[Sequence[Row]], float | None]:
    return lambda rows: _speed_of_largest(rows, model=model, program="prefill", tokens=512, quantize=quantize)


def _speed_of_largest(measured: Sequence[Row], **wanted: Any) -> float | None:
    """Returns the speed of the row with the most rows, then slots, among those on a v5e that fit and are all busy."""
    own = [row for row in _of(measured, chip="v5e", fits=True, **wanted) if row["busy"] == row["rows"]]
    return speed(max(own, key=lambda row: (row["rows"], row["slots"]))) if own else None


def _temporaries(rows: Sequence[Row]) -> float | None:
    own = _of(rows, model="2b", chip="v5e", quantize=None, program="decode", rows=512, fits=True)
    return own[0]["temp_bytes"] / 1e9 if own else None


def _eight_of_all(rows: Sequence[Row]) -> float | None:
    own = _of(rows, model="2b", chip="v5e", quantize=None, program="decode", sampling="greedy", rows=8)
    pools = sorted((row for row in own if row["fits"]), key=lambda row: row["slots"])
    return seconds(pools[-1]) / seconds(pools[0]) if len(pools) > 1 and pools[0]["slots"] == 8 else None


def verdict(goal: Goal, value: float | None) -> str:
    """Returns whether a figure reaches its goal, and by how many percent it misses the least or the further one."""
    if value is None:
        return "not measured"
    if (missed := _missed(goal, value, goal.least)) > 0:
        return f"missed by {missed:.0%}"
    if goal.stretch is None:
        return "reached"
    further = _missed(goal, value, goal.stretch)
    return "reached, stretch too" if further <= 0 else f"reached; stretch missed by {further:.1%}"


def _missed(goal: Goal, value: float, wanted: float) -> float:
    return (value / wanted if goal.is_ceiling else wanted / value) - 1


def as_goals(rows: Sequence[Row]) -> str:
    """Returns the goals and what is reached of them, as a Markdown table."""
    names = ("figure", "measured", "at least", "stretch", "limit", "")
    lines = [_line(names), _line("---" for _ in names)]
    for goal in goals():
        value = goal.value(rows)
        numbers = (_number(n) for n in (value, goal.least, goal.stretch, goal.limit))
        lines.append(_line((goal.name, *numbers, verdict(goal, value))))
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def as_markdown(rows: Sequence[Row]) -> str:
    """Returns the goals and a table per model, chip and number of slots."""
    return "\n\n".join([as_goals(rows), *_tables(rows)])


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    for _, own in groupby(rows, key=title):
        yield as_table(list(own))
