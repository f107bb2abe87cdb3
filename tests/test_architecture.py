"""The floor plan as a test: who may import whom, and which room holds which concern.

Nothing here runs Roost: sources are parsed and their imports compared with the tables below. To change the
floor plan, change a table. Every rule is also shown violations it must report, since a rule that cannot fail
is worthless.
"""

import ast
import fnmatch
import importlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("server", "engine", "kernels", "configs")

# Rooms from the top down: a file may import from its own room and those after it. Names with a suffix are single files,
# and those with a star are parts of features, which need not have one.
LEVELS = (
    "__init__.py",
    "server/__main__.py",
    "server/commands",
    "server/features/*/command",
    "server/run",
    "server/app.py",
    "server/features",
    "server/feature.py",
    "server/client.py",
    "server/openai",
    "server/http",
    "server/llm",
    "server/assembly",
    "server/generation",
    "server/schemas",
    "server/constraints",
    "server/text",
    "server/model_hub",
    "server/terminal",
    "server/observability",
    "server/settings",
    "server/features/index.py",
    "server/storage",
    "server/errors",
    "server/database",
    "server/tenants.py",
    "server/__init__.py",
    "engine/__init__.py",
    "engine/async_engine.py",
    "engine/builder.py",
    "engine/engine_core.py",
    "engine/planning",
    "engine/simulation.py",
    "engine/kernel_checks",
    "engine/capacity",
    "engine/worker",
    "engine/scheduling",
    "engine/prefix_cache",
    "engine/sampling",
    "engine/checkpoint",
    "engine/model",
    "engine/devices",
    "engine/types",
    "kernels",
    "configs",
)

# Rooms that don't import each other, whatever their order: what they share lies in a room below both.
BESIDE = {("engine/scheduling", "engine/worker")}

# Each outside concern, the modules that stand for it, and its only rooms.
CONCERNS: dict[str, tuple[set[str], tuple[str, ...]]] = {
    "HTTP": (
        {"fastapi", "starlette", "uvicorn"},
        (
            "server/app.py",
            "server/feature.py",
            "server/features/*",
            "server/openai/*",
            "server/http/*",
            "server/run/*",
            "server/observability/tracing.py",
        ),
    ),
    "schemas": ({"pydantic"}, ("server/*",)),
    "text": ({"sentencepiece", "tokenizers", "jinja2"}, ("server/*",)),
    "grammars": ({"llguidance"}, ("server/constraints/grammar_worker/*",)),
    "metrics": (
        {"prometheus_client"},
        ("server/observability/*metrics.py", "server/feature.py", "server/features/*/collector.py"),
    ),
    "traces": ({"opentelemetry"}, ("server/observability/tracing.py",)),
    "threads, locks and queues": (
        {"threading", "_thread", "queue"},
        (
            "engine/async_engine.py",
            "engine/devices/hosts.py",
            "engine/prefix_cache/disk.py",
            "engine/worker/compilation.py",
            "server/database/dialects.py",  # the transactions of a store in memory share a connection
            "server/database/database.py",  # a caller on the event loop interrupts a statement on its thread
            "server/commands/report/parts.py",  # ends its process with its parent
            "server/llm/llm.py",
            "server/constraints/grammar_process.py",
            "server/observability/logging.py",  # the hook for what threads raise
        ),
    ),
    "thread pools": (
        {"concurrent.futures", "multiprocessing.pool"},
        (
            "server/*",
            "engine/async_engine.py",
            "engine/builder.py",
            "engine/capacity/chips.py",
            "engine/worker/compilation.py",
            "engine/worker/runner.py",
            "engine/checkpoint/weights.py",
            "engine/prefix_cache/disk.py",
        ),
    ),
    "JAX": (
        {"jax", "jaxlib", "flax", "optax"},
        (
            "kernels/*",
            "engine/builder.py",
            "engine/capacity/*",
            "engine/checkpoint/conversion.py",  # runs layers
            "engine/checkpoint/weights.py",
            "engine/devices/*",
            "engine/kernel_checks/*",
            "engine/model/*",
            "engine/sampling/*",
            "engine/worker/*",
        ),
    ),
    "the time of day, which may jump": (  # for people to read; whatever is measured or waited for is time.monotonic's
        {"time.time", "time.time_ns", "datetime"},
        (
            "server/openai/completions.py",
            "server/features/*/builder.py",
            "server/features/*/conversation_routes.py",
            "server/features/*/usage_table.py",
            "server/openai/models.py",
            "server/text/served_model.py",
            "server/generation/state_store.py",
            "server/commands/bench/report.py",
            "server/observability/logging.py",
            "server/observability/metrics.py",
            "server/observability/tracing.py",
        ),
    ),
    "databases": ({"sqlite3", "psycopg"}, ("server/database/dialects.py", "server/database/postgresql.py")),
    "checkpoint formats": (
        {"safetensors", "tensorstore", "orbax"},
        (
            "engine/checkpoint/safetensors_files.py",
            "engine/checkpoint/official.py",
            "engine/types/snapshot.py",
        ),
    ),
    "downloads": ({"huggingface_hub", "kagglehub", "obstore", "requests"}, ("server/model_hub/*",)),
    "JSON decoders": (  # of clients' and of stored JSON: only an admission decodes it, see `generation/admission.py`
        {"orjson.loads", "json.loads", "json.load", "pydantic_core.from_json"},
        (
            "engine/*",
            "server/generation/admission.py",
            "server/schemas/json_limits.py",
            "server/settings/fields.py",  # a flag of the operator's
            "server/text/*",  # files of a checkpoint
            "server/constraints/output_constraint.py",  # a schema's text, short by its limit
            "server/constraints/grammar_worker/*",  # what the server sends to its own processes
            "server/features/*/builder.py",  # arguments that the model has generated
            "server/features/*/messages.py",
            "server/client.py",  # what servers have sent
            "server/features/*/client.py",
            "server/commands/*",
            "server/features/*/command/*",
        ),
    ),
    "environment variables": (
        {"os.environ", "os.environb", "os.getenv", "os.putenv", "os.unsetenv"},
        (
            "server/settings/sources.py",
            "engine/capacity/chips.py",
            "engine/devices/platform.py",
            "kernels/native/library.py",  # reads the instruction sets that XLA's flags allow
        ),
    ),
}

DOORS: dict[str, tuple[str, ...]] = {
    r"\.validate_json\(": (),
    r"\bdecode_(own_)?json\(": (
        "server/generation/admission.py",
        "server/schemas/json_limits.py",
        "server/features/*/batch_lines.py",  # of a line's `custom_id`, of at most 8 KiB
    ),
    r"engine\.submit\(": ("server/generation/generation.py",),
}
"""Calls that only an admission makes, or that need one, and the files of `server` that may make them."""

MAX_PREEMPTION_LINES = 15
PREEMPTION = re.compile("preempt|victim", re.IGNORECASE)
"""Words about requests that give their slots up; at most so many lines of scheduling outside one file have them."""

BATCH_FILES = re.compile(
    r"\b(is|num|takes)_batch|\bof lines|\blines? of (a )?batch|\bof no batch\b|\bbatch (request|file)s?"
)
"""Words about files of requests, which only `server` knows: to the engine, a batch is what a step runs."""

STATE_FILES = (
    "engine/model/layer_kinds.py",  # declares them
    "engine/model/layers.py",  # computes them
    "engine/model/speculation.py",  # keeps those of accepted tokens
    "engine/model/config.py",  # has the sizes
    "engine/checkpoint/official.py",  # reads the sizes of official checkpoints
    "engine/checkpoint/layout.py",  # names the tensors of these sizes
    "engine/kernel_checks/ops.py",  # draws the inputs of its kernels' checks
)
"""The files of the engine that know what a layer's state consists of; all others derive it from `LAYER_KINDS`."""

STATE_NAMES = re.compile(r"(^|_)(taps|rings?)(_|$)|^(h|conv)$|lru_width")
"""Names of the parts of Griffin's states and of their sizes."""

IMPURE = re.compile(r"\b(import|from) (time|datetime|random|secrets|threading|asyncio)\b|\b(np|numpy)\.random\b")
"""Imports and names by which code gets a clock, threads or random numbers, as scheduling does not."""

KERNEL_CHOICES = re.compile(
    r"isinstance\([^()]*\b(Int8Matrix|Packed\w+)\b|\bis_native\b|\bhas_(int8_)?kernel\b|pallas_[a-z]+ import"
)
"""Questions by which code chooses an implementation, as only `kernels` does: the engine calls ops."""

SHARED_NAMES = {"SamplingParams", "ToolCall"}
"""Classes of the Python API that share their name, which is the field's, with one class of the server or the engine."""

type Sources = Mapping[str, str]
"""Python files: path from the root, with slashes, to text."""

type Rule = Callable[[Sources], list[str]]
"""Returns one line for each violation."""


# --- reading


def sources() -> Sources:
    """Returns every Python file of the rooms, and the one of the package itself."""
    paths = [ROOT / "__init__.py", *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


@cache  # since each rule reads all files
def nodes(path: str, text: str) -> list[ast.AST]:
    """Returns all nodes of a file."""
    return list(ast.walk(ast.parse(text, path)))


def names_used(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Yields each name that a file imports or reaches through an imported module, as (line, 'os.environ')."""
    modules: dict[str, str] = {}
    for node in nodes(path, text):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
                bound = alias.asname or alias.name.partition(".")[0]
                modules[bound] = alias.name if alias.asname else bound
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
    for node in nodes(path, text):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield node.lineno, f"{modules[node.value.id]}.{node.attr}"


def inner_imports(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Yields each relative import as a path from the root, such as (3, 'engine/model/config')."""
    folder = path.split("/")[:-1]
    for node in nodes(path, text):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            base = folder[: len(folder) - node.level + 1] if node.level <= len(folder) + 1 else ["(outside)"]
            module = node.module.split(".") if node.module else []
            for alias in node.names:
                yield node.lineno, "/".join([*base, *module, alias.name])


@cache
def room_of(path: str) -> str | None:
    """Returns the room that a file, or a name in one, lies in; None outside of all rooms."""
    module, (parent, _, _) = path.removesuffix(".py"), path.rpartition("/")
    inside = [room for room in LEVELS if fnmatch.fnmatch(path, room) or fnmatch.fnmatch(path, f"{room}/*")]
    candidates = [f"{module}.py", f"{parent}.py", *sorted(inside, key=len, reverse=True)]
    if not path.endswith(".py"):
        candidates.append(f"{parent}/__init__.py")
    return next((room for room in candidates if room in LEVELS), None)


def is_part_of(name: str, module: str) -> bool:
    """Returns whether a dotted name is a module or lies inside it."""
    return name == module or name.startswith(f"{module}.")


# --- the rules


def imports_point_down(files: Sources) -> list[str]:
    """Imports go from a room to those below it, never back; `LEVELS` is the order."""
    return [
        f"{path}:{line} imports {target}, which is not below it"
        for path, text in files.items()
        for line, target in inner_imports(path, text)
        if not may_import(path, target)
    ]


def may_import(path: str, target: str) -> bool:
    """Returns whether one file may import another, or a name of another, both as paths from the root."""
    here, there = room_of(path), room_of(target)
    if here is None or there is None or (here, there) in BESIDE or (there, here) in BESIDE:
        return False
    return LEVELS.index(here) <= LEVELS.index(there)


def modules_form_no_circle(files: Sources) -> list[str]:
    """No module imports itself through others, in a room or across rooms."""
    graph = {
        path: {module for _, target in inner_imports(path, text) if (module := module_of(target, files)) != path}
        for path, text in files.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [f"imports form a circle: {' <- '.join(error.args[1])}"]
    return []


def module_of(target: str, files: Sources) -> str:
    """Returns the file that an imported module or name lies in; the target itself if there is none."""
    parent = target.rpartition("/")[0]
    candidates = (f"{target}.py", f"{target}/__init__.py", f"{parent}.py", f"{parent}/__init__.py")
    return next((path for path in candidates if path in files), target)


def features_stand_beside_one_another(files: Sources) -> list[str]:
    """Only the features' index knows a feature."""
    return [
        f"{path}:{line} imports {target}, of the feature {there}"
        for path, text in files.items()
        for line, target in inner_imports(path, text)
        if (there := feature_of(target)) not in (None, feature_of(path))
    ]


def feature_of(path: str) -> str | None:
    """Returns the feature that a file, or a name in one, belongs to; None if it belongs to none."""
    found = re.match(r"server/features/(?!index\b)(\w+)/", path)
    return found and found[1]


def imports_between_rooms_are_relative(files: Sources) -> list[str]:
    """Our own packages are imported relatively: absolute names depend on how the checkout is installed."""
    return [
        f"{path}:{line} imports {name} absolutely; write it relatively"
        for path, text in files.items()
        for line, name in names_used(path, text)
        if name.split(".")[0] in ("roost", *ROOMS)
    ]


def concerns_stay_in_their_rooms(files: Sources) -> list[str]:
    """Each outside concern is used in its own rooms only."""
    return [
        f"{path}:{line} uses {name} ({concern}), whose only room is {' or '.join(rooms)}"
        for path, text in files.items()
        for line, name in names_used(path, text)
        for concern, (modules, rooms) in CONCERNS.items()
        if any(is_part_of(name, module) for module in modules)
        if not any(fnmatch.fnmatch(path, room) for room in rooms)
    ]


def work_has_an_admission(files: Sources) -> list[str]:
    """Only some files of `server` decode JSON of clients, or submit requests to the engine: work needs an admission."""
    return [
        f"{path}:{number} calls {pattern}: use an admission, and `Generation.start`"
        for path, text in files.items()
        if path.startswith("server/")
        for pattern, allowed in DOORS.items()
        if not any(fnmatch.fnmatch(path, room) for room in allowed)
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]


def few_files_know_the_parts_of_a_state(files: Sources) -> list[str]:
    """Only the files of `STATE_FILES` know the parts of a layer's state; a new kind of layer touches no others."""
    return [
        f"{path} knows {name}: derive it from LAYER_KINDS"
        for path, text in files.items()
        if path.startswith("engine/") and path not in STATE_FILES
        for name in sorted(set(identifiers(path, text)))
        if STATE_NAMES.search(name)
    ]


def public_classes_have_names_of_their_own(files: Sources) -> list[str]:
    """A public class has a name that no other class has, so that a name says which class is meant."""
    homes: dict[str, list[str]] = {}
    for path, text in files.items():
        for node in ast.parse(text, path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(path)
    return [
        f"{name} is a class of {' and of '.join(paths)}: rename one of them"
        for name, paths in homes.items()
        if len(paths) > 1 and name not in SHARED_NAMES
    ]


def identifiers(path: str, text: str) -> Iterator[str]:
    """Yields the names in a file's code, and its strings of one word."""
    for node in nodes(path, text):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.alias(name=name):
                yield name
            case ast.Constant(value=str(name)) if name.isidentifier():
                yield name


RULES = (
    imports_point_down,
    modules_form_no_circle,
    features_stand_beside_one_another,
    imports_between_rooms_are_relative,
    concerns_stay_in_their_rooms,
    work_has_an_admission,
    few_files_know_the_parts_of_a_state,
    public_classes_have_names_of_their_own,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_holds(rule: Rule) -> None:
    found = sorted(set(rule(sources())))
    assert not found, "\n".join([rule.__doc__ or rule.__name__, *found])


@pytest.mark.parametrize(
    "files",
    [
        {"engine/x.py": "from .y import a", "engine/y.py": "from . import x"},
        {"server/text/__init__.py": "def f():\n    from .x import a", "server/text/x.py": "from . import f"},
        {"a/x.py": "from ..b.y import a", "b/y.py": "from ..c import z", "c/z.py": "from ..a.x import b"},
    ],
)
def test_a_circle_is_seen(files: dict[str, str]) -> None:
    assert modules_form_no_circle(files)
    assert not modules_form_no_circle(dict(list(files.items())[:-1]))


def test_files_of_states_know_their_parts() -> None:
    assert len(STATE_FILES) <= 8
    assert all(any(map(STATE_NAMES.search, identifiers(path, (ROOT / path).read_text()))) for path in STATE_FILES)


def test_every_room_of_the_tables_exists() -> None:
    files = [path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    patterns = {pattern for _, patterns in CONCERNS.values() for pattern in patterns}
    assert [room for room in LEVELS if "*" not in room and not (ROOT / room).exists()] == []
    core = [pattern for pattern in sorted(patterns) if not pattern.startswith("server/features/*/")]
    assert [pattern for pattern in core if not fnmatch.filter(files, pattern)] == []


# --- words


def lines_with(pattern: re.Pattern[str], files: Sources, room: str) -> list[str]:
    """Returns the lines of a room's files that contain a pattern."""
    return [
        f"{path}:{number}: {line.strip()}"
        for path, text in files.items()
        if path.startswith(f"{room}/")
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_preemption_has_two_files_of_its_own() -> None:
    """The rest of scheduling asks it, on few lines."""
    own = ("engine/scheduling/preemption.py", "engine/scheduling/preemption.py")
    files = {path: text for path, text in sources().items() if path not in own}
    found = lines_with(PREEMPTION, files, "engine/scheduling")
    assert 0 < len(found) <= MAX_PREEMPTION_LINES, "\n".join(["", *found])


ABSENT = (
    ("engine", BATCH_FILES, ["x.is_batch", "num_batch_slots = 4", "# prompts of lines", "a line of a batch"]),
    ("engine/scheduling", IMPURE, ["import time", "from random import Random", "draw = np.random.default_rng(0)"]),
    (
        "engine",
        KERNEL_CHOICES,
        [
            "if isinstance(down, Int8Matrix):",
            "if platform.kernels.is_native:",
            "from ...kernels.gated_mlp.pallas_tpu import gated_mlp_tpu",
        ],
    ),
)
"""Rooms, the words that none of their files may have, and lines that have them."""


@pytest.mark.parametrize(("room", "pattern", "wrong"), ABSENT, ids=["batch files", "clocks", "kernels"])
def test_no_line_of_a_room_has_what_it_must_not_know(room: str, pattern: re.Pattern[str], wrong: list[str]) -> None:
    found = lines_with(pattern, sources(), room)
    assert not found, "\n".join(["", *found])
    assert len(lines_with(pattern, {f"{room}/x.py": "\n".join(wrong)}, room)) == len(wrong)


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (imports_point_down, "kernels/recurrent_block/x.py", "from ...engine import types"),
        (imports_point_down, "kernels/recurrent_block/x.py", "from ...engine.types.errors import RoostError"),
        (imports_point_down, "engine/model/x.py", "from ..scheduling.scheduler import Scheduler"),
        (imports_point_down, "engine/model/x.py", "from .. import scheduling"),
        (imports_point_down, "engine/types/x.py", "from ..model.config import ModelConfig"),
        (imports_point_down, "engine/scheduling/x.py", "from ..worker.runner import ModelRunner"),
        (imports_point_down, "engine/worker/x.py", "from ..scheduling.slots import SlotPool"),
        (imports_point_down, "engine/worker/x.py", "from .. import engine_core"),
        (imports_point_down, "engine/worker/x.py", "from ..engine_core import EngineCore"),
        (imports_point_down, "engine/worker/x.py", "def late():\n    from ...server import app"),
        (imports_point_down, "engine/worker/x.py", "from ... import server"),
        (imports_point_down, "engine/worker/x.py", "from ..... import anything"),
        (imports_point_down, "engine/x.py", "import jax\nfrom .types import config"),
        (imports_point_down, "server/text/x.py", "from ..generation.service import Service"),
        (imports_point_down, "server/http/x.py", "from ..features.toys.routes import router"),
        (features_stand_beside_one_another, "server/app.py", "from .features.toys.routes import router"),
        (features_stand_beside_one_another, "server/features/toys/x.py", "from ..dolls.routes import router"),
        (imports_point_down, "server/llm/x.py", "from ..http.routes import JsonRoute"),
        (imports_point_down, "server/llm/x.py", "from ..openai.schemas import ChatBody"),
        (imports_point_down, "server/llm/x.py", "from ..feature import load_features"),
        (imports_between_rooms_are_relative, "server/x.py", "import roost.engine"),
        (imports_between_rooms_are_relative, "server/x.py", "from roost.engine import AsyncEngine"),
        (imports_between_rooms_are_relative, "server/x.py", "from roost import engine"),
        (imports_between_rooms_are_relative, "engine/x.py", "from kernels import rg_lru"),
        (concerns_stay_in_their_rooms, "engine/x.py", "import fastapi"),
        (concerns_stay_in_their_rooms, "server/http/x.py", "import orjson\nbody = orjson.loads(raw)"),
        (work_has_an_admission, "server/http/x.py", "body = decode_json(raw)"),
        (work_has_an_admission, "server/features/x/y.py", "messages = _MESSAGES.validate_json(raw)"),
        (work_has_an_admission, "server/generation/service.py", "self.engine.submit(request, sink)"),
        (concerns_stay_in_their_rooms, "server/errors/x.py", "from starlette.exceptions import HTTPException"),
        (concerns_stay_in_their_rooms, "engine/x.py", "from pydantic.fields import Field"),
        (concerns_stay_in_their_rooms, "engine/x.py", "import sentencepiece as spm"),
        (concerns_stay_in_their_rooms, "server/constraints/output_constraint.py", "from llguidance import LLMatcher"),
        (concerns_stay_in_their_rooms, "server/app.py", "from prometheus_client import Counter"),
        (concerns_stay_in_their_rooms, "engine/engine_core.py", "import threading"),
        (concerns_stay_in_their_rooms, "server/app.py", "from threading import Lock"),
        (concerns_stay_in_their_rooms, "engine/engine_core.py", "from concurrent import futures"),
        (concerns_stay_in_their_rooms, "engine/engine_core.py", "from concurrent.futures import Future"),
        (concerns_stay_in_their_rooms, "engine/scheduling/scheduler.py", "import jax.numpy as jnp"),
        (concerns_stay_in_their_rooms, "server/app.py", "if True:\n    from flax import nnx"),
        (concerns_stay_in_their_rooms, "engine/checkpoint/weights.py", "from safetensors import safe_open"),
        (concerns_stay_in_their_rooms, "engine/checkpoint/source.py", "from huggingface_hub import snapshot_download"),
        (concerns_stay_in_their_rooms, "server/app.py", "import os\nkey = os.environ['KEY']"),
        (concerns_stay_in_their_rooms, "kernels/x.py", "import os as system\nsystem.getenv('KEY')"),
        (concerns_stay_in_their_rooms, "engine/x.py", "from os import environ"),
        (concerns_stay_in_their_rooms, "engine/async_engine.py", "import time\nnow = time.time()"),
        (few_files_know_the_parts_of_a_state, "engine/worker/x.py", "h, window = arrays"),
        (few_files_know_the_parts_of_a_state, "engine/worker/x.py", "names = {'conv': 1}"),
        (few_files_know_the_parts_of_a_state, "engine/worker/x.py", "def ring_rows(x): ..."),
        (few_files_know_the_parts_of_a_state, "engine/x.py", "width = config.lru_width"),
        (public_classes_have_names_of_their_own, "engine/x.py", "class Plan: ...\nclass Plan: ..."),
    ],
)
def test_rule_reports_a_violation(rule: Rule, path: str, text: str) -> None:
    assert rule({path: text}), f"{rule.__name__} let this pass: {text}"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("server/openai/x.py", "from ...engine import AsyncEngine\nfrom .. import errors\nimport fastapi"),
        ("server/text/x.py", "from ... import configs\nfrom ...configs import presets"),
        ("server/settings/sources.py", "import os\nos.environ.get('KEY')"),
        (
            "engine/worker/x.py",
            "import os.path\nfrom ..model.config import ModelConfig\nfrom ...kernels import recurrent_block",
        ),
        (
            "engine/model/x.py",
            "from ..types.errors import CheckpointError\nfrom ...kernels.recurrent_block import rg_lru\nimport jax",
        ),
        ("engine/worker/transfer.py", "import jax"),
        ("engine/async_engine.py", "import queue, threading"),
        ("kernels/recurrent_block/x.py", "import jaxtyping\nfrom . import rg_lru"),
    ],
)
def test_rules_let_the_floor_plan_pass(path: str, text: str) -> None:
    files = {path: text}
    rules = (imports_point_down, imports_between_rooms_are_relative, concerns_stay_in_their_rooms)
    assert [line for rule in rules for line in rule(files)] == []


# --- what is shipped


def distribution() -> Any:
    """Returns what setup.py and pyproject.toml say about packages and their data."""
    pytest.importorskip("setuptools")  # brings distutils
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # setuptools calls extension modules in pyproject.toml experimental
        patch.chdir(ROOT)
        return importlib.import_module("distutils.core").run_setup("setup.py", stop_after="config")


def folder_of(package: str) -> str:
    """Returns where a package lies: roost.engine.model is engine/model, and roost the checkout itself."""
    return package.removeprefix("roost").lstrip(".").replace(".", "/") or "."


def files_in_rooms(root: Path) -> set[str]:
    """Returns the rooms' own files, without what Python and the compiler leave behind."""
    own = (root / "__init__.py", root / "py.typed")
    paths = [path for room in ROOMS for path in (root / room).rglob("*")]
    paths = [path for path in (*own, *paths) if path.is_file()]
    return {
        path.relative_to(root).as_posix() for path in paths if "__pycache__" not in path.parts and path.suffix != ".so"
    }


def unlisted(root: Path, packages: Iterable[str]) -> list[str]:
    """Every folder with Python in it is a package that setup.py finds, and every found one exists."""
    listed = {folder_of(package) for package in packages}
    python = {Path(file) for file in files_in_rooms(root) if file.endswith(".py")}
    folders = {path.parent.as_posix() for path in python}
    doors = {path.parent.as_posix() for path in python if path.name == "__init__.py"}
    return [
        *(f"{folder}: has no __init__.py" for folder in sorted(folders - doors)),
        *(f"{folder}: not found by setup.py" for folder in sorted(folders - listed)),
        *(f"{folder}: found by setup.py, but not there" for folder in sorted(listed - doors)),
    ]


def unshipped(root: Path, packages: list[str], package_data: Mapping[str, list[str]]) -> list[str]:
    """Every data file matches a pattern of package-data, read from its package; notes (.md) stay at home."""
    shipped = {
        path.relative_to(root).as_posix()
        for key, patterns in package_data.items()
        for package in (packages if key == "*" else [key])
        for pattern in patterns
        for path in (root / folder_of(package)).glob(pattern)
    }
    data = {file for file in files_in_rooms(root) if not file.endswith((".py", ".md"))}
    return [f"{file}: matches no package-data in pyproject.toml" for file in sorted(data - shipped)]


def test_every_package_is_listed() -> None:
    found = unlisted(ROOT, distribution().packages)
    assert not found, "\n".join([unlisted.__doc__ or "", *found])


def test_every_data_file_ships() -> None:
    found = unshipped(ROOT, distribution().packages, distribution().package_data)
    assert not found, "\n".join([unshipped.__doc__ or "", *found])


def test_a_wheel_takes_one_module_from_the_root(tmp_path: Path) -> None:
    """Collects modules as setuptools does: `dev.py` stays at home."""
    found = distribution()
    found.get_command_obj("egg_info").egg_base = str(tmp_path)  # other tests read the checkout's
    build = found.get_command_obj("build_py")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it takes folders of data for packages
        patch.chdir(ROOT)
        build.ensure_finalized()
        own = [Path(file).as_posix() for package, _, file in build.find_all_modules() if package == "roost"]
        data = {name for package, _, _, names in build.data_files for name in names if package == "roost"}
    assert own == ["__init__.py"]
    assert data == {"py.typed"}


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """A root with one package, one folder that lost its door, and one data file."""
    for name in ("engine/__init__.py", "engine/model/griffin.py", "engine/presets/tiny.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_packages_that_are_wrong_are_reported(small_tree: Path) -> None:
    assert unlisted(small_tree, ["roost.server"]) == [
        "engine/model: has no __init__.py",
        "engine: not found by setup.py",
        "engine/model: not found by setup.py",
        "server: found by setup.py, but not there",
    ]


@pytest.mark.parametrize(
    ("package_data", "ships"),
    [
        ({"*": ["*.json"]}, False),
        ({"*": ["**/*.json"]}, True),
        ({"roost.engine": ["presets/*"]}, True),
        ({"roost.server": ["presets/*"]}, False),
    ],
)
def test_data_left_behind_is_seen(small_tree: Path, package_data: dict[str, list[str]], ships: bool) -> None:
    found = unshipped(small_tree, ["roost.engine"], package_data)
    assert [line.split(":")[0] for line in found] == ([] if ships else ["engine/presets/tiny.json"])


# --- what must not be written down

ADDRESS = re.compile(r"://|\s@\s|^\s*-(?!-hash=)", re.MULTILINE)
"""In a requirements file: an address, a direct reference, or an option such as --index-url."""

MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root|Users/\w+)/")
"""A folder of somebody's own machine."""

UNTRACKED = re.compile(r"\.git|\.venv.*|\.types|\..*_cache|\.hypothesis|__pycache__|\.work|build|dist|.*\.egg-info")
"""Folders that git ignores."""


def text_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields every text file of the project below a folder, and its text."""
    for path in sorted(folder.iterdir()):
        if UNTRACKED.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from text_files(path)
        elif path.is_file() and path.stat().st_size < 1_000_000 and b"\0" not in (data := path.read_bytes()):
            yield path.relative_to(ROOT).as_posix(), data.decode(errors="replace")


def test_locks_name_no_address() -> None:
    locks = sorted((ROOT / "requirements").glob("*.txt"))
    assert locks, "requirements/ holds no lock"
    found = [path.name for path in locks if ADDRESS.search(without_comments(path.read_text()))]
    assert not found, f"these locks hold an address or an option: {found}"


def without_comments(text: str) -> str:
    """Returns a requirements file without uv's notes, in which `-c` and `-r` tell where a pin comes from."""
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#") or "://" in line)


@pytest.mark.parametrize(
    "line", ["--index-url http" + "://localhost/simple", "-f wheels", "roost @ ./roost", "# from ftp" + "://x", "-e ."]
)
def test_an_address_in_a_lock_is_seen(line: str) -> None:
    good = "jax==0.12.0.1 \\\n    --hash=sha256:00\n    # via -c requirements/dev.txt\n"
    assert not ADDRESS.search(without_comments(good))
    assert ADDRESS.search(without_comments(good + line))


def test_no_file_names_a_machine_path() -> None:
    found = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in text_files(ROOT)
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "\n".join(["a path of somebody's own machine:", *found])


def test_a_machine_path_is_seen() -> None:
    assert MACHINE_PATH.search("open('/" + "work/main/x')")
    assert MACHINE_PATH.search("#!/" + "root/bin/python")
    assert not MACHINE_PATH.search("wget example.org/work/x; ls frame/root/x")
