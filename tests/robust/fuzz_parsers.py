"""Fuzzes every parser of foreign files: checkpoints, tokenizers, templates, states.

    python tests/robust/fuzz_parsers.py [--rounds 2000] [--seed 0] [--target NAME ...] [--atheris SECONDS] [--json]

Valid files have their bytes changed, cut, duplicated and mixed; a parser must either read the result or raise one of
Roost's errors. Each target runs in its own process, so that a crash of a library is a finding too. With `--atheris`
(`pip install atheris`), mutations are guided by coverage, for that many seconds per target. Exits with 1 and lists the
problems if there are any.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from roost.engine import RoostError
from roost.engine.checkpoint.safetensors_files import INDEX, find_files, open_files
from roost.engine.model.config import read_config
from roost.engine.types.snapshot import pack, unpack
from roost.server.text.chat_format import ChatFormatError, Message
from roost.server.text.chat_template import load_chat_format
from roost.server.text.served_model import read_defaults
from roost.server.text.synthetic_tokenizer import synthetic_tokenizer
from roost.server.text.tokenizer import load_tokenizer
from safetensors.numpy import save

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
KEY = b"key"
TEMPLATE = """{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}
<start_of_turn>{{ m.role | upper }}
{{ m.content | trim }}<end_of_turn>{% set x = [1, 2] %}{% if loop.last %}{{ x[0] ~ tools }}{% break %}{% endif %}
{% endfor %}{% macro f(a, b=1) %}{{ a * b }}{% endmacro %}{{ f(2) if add_generation_prompt else '' }}"""
MESSAGES = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))


@dataclass(frozen=True)
class Target:
    """A parser under test.

    Attributes:
      seeds: Valid files.
      read: Does everything with a file in an empty folder, and raises only `REFUSALS`.
    """

    seeds: Sequence[bytes]
    read: Callable[[bytes, Path], object]


REFUSALS = (RoostError, ChatFormatError)


def _config(data: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(data)
    read_config(folder / "config.json")


def _generation_config(data: bytes, folder: Path) -> None:
    (folder / "generation_config.json").write_bytes(data)
    read_defaults(folder, 512)


def _safetensors(data: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(data)
    with open_files([folder / "model.safetensors"]) as tensors:
        for tensor in tensors.values():
            tensor.open()(slice(None))


def _index(data: bytes, folder: Path) -> None:
    (folder / INDEX).write_bytes(data)
    (folder / "a.safetensors").write_bytes(_TENSORS)
    files = find_files(folder)
    assert all(file.resolve().parent == folder.resolve() for file in files), f"read outside of the folder: {files}"
    with open_files(files):
        pass


def _sentencepiece(data: bytes, folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(data)
    _use_tokenizer(folder, 3072)


def _tokenizer_json(data: bytes, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(data)
    _use_tokenizer(folder, 512)


def _tokenizer_config(data: bytes, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(_TOKENIZER)
    (folder / "tokenizer_config.json").write_bytes(data)
    load_chat_format(folder, load_tokenizer(folder, 512))


def _use_tokenizer(folder: Path, vocab_size: int) -> None:
    tokenizer = load_tokenizer(folder, vocab_size)
    for token_id in tokenizer.encode("a <eos> b\u00e9")[:50]:
        tokenizer.token_bytes(token_id)


def _template(data: bytes, folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(data)
    load_chat_format(folder, _SYNTHETIC).encode(MESSAGES)


def _state(data: bytes, folder: Path) -> None:
    for key in (None, KEY):
        try:
            unpack(data, key)
        except RoostError:
            continue


_SYNTHETIC = synthetic_tokenizer(512)
_TENSORS = save({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.int8)})
_ARRAYS = {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.int32)}


def _some_tokenizer() -> bytes:
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "a", "b", " ", "ab"]
    model = tokenizers.models.BPE({name: i for i, name in enumerate(names)}, [("a", "b")], unk_token="<unk>")
    made = tokenizers.Tokenizer(model)
    made.add_special_tokens(names[:6])
    return made.to_str().encode()


_TOKENIZER = _some_tokenizer()
_TOKENIZER_CONFIG = {
    "bos_token": "<bos>",
    "eos_token": {"content": "<eos>"},
    "chat_template": TEMPLATE,
    "add_bos_token": 1,
}

TARGETS: Mapping[str, Target] = {
    "config.json": Target([(DEMO / "config.json").read_bytes()], _config),
    "generation_config.json": Target([(DEMO / "generation_config.json").read_bytes()], _generation_config),
    "safetensors": Target([_TENSORS], _safetensors),
    "safetensors index": Target([json.dumps({"weight_map": dict.fromkeys("ab", "a.safetensors")}).encode()], _index),
    "tokenizer.model": Target([(DEMO / "tokenizer.model").read_bytes()], _sentencepiece),
    "tokenizer.json": Target([_TOKENIZER], _tokenizer_json),
    "tokenizer_config.json": Target([json.dumps(_TOKENIZER_CONFIG).encode()], _tokenizer_config),
    "chat template": Target([TEMPLATE.encode()], _template),
    "state": Target([pack(_ARRAYS, {"model": "m"}), pack(_ARRAYS, {"model": "m"}, KEY)], _state),
}

BOOTSTRAP = """import atheris, runpy, sys
del sys.argv[0]
with atheris.instrument_imports(include=["roost", "jinja2", "json", "safetensors"]):
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Instruments imports for coverage, without JAX, which would take minutes."""

PIECES = (
    b"\x00",
    b"\xff",
    b"\xff" * 8,
    b"\x7f" * 4,
    b'"',
    b"{",
    b"}",
    b"[" * 2000,
    b"null",
    b"-1",
    b"9" * 30,
    b"1e999",
)
PIECES = (*PIECES, b"NaN", b"\\ud800", b"\xc3\xa9", b"../", b"/etc/passwd", b"{{", b"}}", b"{%", b"%}", b"()", b"\n")


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Returns bytes changed at one to six places, twice as often at the start, where headers are."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(min(len(made), 300) + 1) if rng.random() < 0.5 else rng.randrange(len(made) + 1)
        size = rng.choice((1, 1, 2, 8, 64))
        match rng.randrange(7):
            case 0:
                made[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                made[at:at] = rng.choice(PIECES)
            case 2:
                made[at : at + size] = rng.choice(PIECES)
            case 3:
                del made[at : at + size]
            case 4:
                made[at:at] = made[at : at + size]
            case 5:
                del made[at:]
            case 6 if at < len(made):
                made[at] ^= 1 << rng.randrange(8)
    return bytes(made)


def try_one(target: Target, data: bytes) -> str | None:
    """Returns the problem, if there is one."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            target.read(data, Path(folder))
        except REFUSALS as error:
            return None if str(error).strip() else "refused without a reason"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return None


def rounds(target: Target, count: int, seed: int) -> dict[str, str]:
    """Returns one example of each kind of problem."""
    rng = random.Random(seed)
    problems: dict[str, str] = {}
    for _ in range(count):
        data = mutated(rng.choice(target.seeds), rng)
        if (problem := try_one(target, data)) is not None:
            problems.setdefault(problem[:120], repr(data[:1000]))
    return problems


def led(target: Target, seconds: int, seed: int) -> None:
    """Runs a target under atheris, which exits with a status other than 0 if it finds a problem."""
    import atheris

    def test(data: bytes) -> None:
        if (problem := try_one(target, data)) is not None:
            raise AssertionError(problem)

    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(target.seeds):
            (Path(corpus) / str(number)).write_bytes(data)
        limits = [f"-max_total_time={seconds}", "-max_len=65536", "-rss_limit_mb=4096", "-timeout=60"]
        atheris.Setup([sys.argv[0], *limits, f"-seed={seed + 1}", f"-artifact_prefix={corpus}/", corpus], test)
        atheris.Fuzz()


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs each target in its own process."""
    began, files, problems = time.monotonic(), 0, list[str]()
    for name in options.target:
        command = [sys.executable, *(["-c", BOOTSTRAP] if options.atheris else []), __file__, "--within", name]
        command += ["--rounds", str(options.rounds), "--seed", str(options.seed), "--atheris", str(options.atheris)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        told = re.findall(r"^#(\d+)|^Done (\d+) runs", done.stderr, re.MULTILINE)
        files += max((int(one or other) for one, other in told), default=0) if options.atheris else options.rounds
        print(f"{name}: status {done.returncode}, {files} files so far", file=sys.stderr, flush=True)
        if done.returncode:
            problems.append(f"{name}: status {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    seconds = round(time.monotonic() - began, 1)
    return {"files": files, "targets": options.target, "seconds": seconds, "problems": problems}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--atheris", type=int, default=0, metavar="SECONDS", help="for each target")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--within", choices=TARGETS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.within and options.atheris:
        led(TARGETS[options.within], options.atheris, options.seed)
    if options.within:
        problems = rounds(TARGETS[options.within], options.rounds, options.seed)
        print("\n".join(f"{problem}: {data}" for problem, data in problems.items()))
        return 1 if problems else 0
    result = run(options)
    print(json.dumps(result) if options.json else "\n".join(result["problems"]) or f"nothing was wrong: {result}")
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
