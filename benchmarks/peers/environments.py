"""Creates a virtual environment for each peer, since their packages conflict, once and from hash-locked files."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORK = HERE.parents[1] / "build" / "peers"
VENVS = WORK / "environments"
REQUIREMENTS = HERE / "requirements"


class CannotInstall(Exception):
    """A peer's environment cannot be created. The message is one line."""


@dataclass(frozen=True)
class Environment:
    """Environment of a peer.

    Attributes:
      python: Required version of Python.
      torch: Packages of torch, installed by name, since the right build depends on the machine.
      builds: Package that is compiled here, with tools of the same lock.
      cmake: Options of its build.
    """

    name: str
    python: str
    torch: tuple[str, ...] = ()
    builds: str | None = None
    cmake: tuple[str, ...] = ()

    @property
    def lock(self) -> Path:
        return REQUIREMENTS / f"{self.name}.txt"

    @property
    def folder(self) -> Path:
        return VENVS / self.name

    @property
    def interpreter(self) -> Path:
        return self.folder / "bin" / "python"


LLAMA_SERVER = (
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_TOOLS_INSTALL=ON",
    "-DLLAVA_BUILD=OFF",  # llama.cpp's tools bring it themselves
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # its web page would be downloaded
    "-DLLAMA_OPENSSL=OFF",
)
"""Options that also build llama.cpp's own server, from the sources that llama-cpp-python brings."""

ENVIRONMENTS: Mapping[str, Environment] = {
    environment.name: environment
    for environment in (
        Environment("official_jax", "3.13"),
        Environment("hf", "3.11", torch=("torch==2.13.0",)),
        Environment("vllm_cpu", "3.11", torch=("torch==2.13.0", "torchvision==0.28.0")),
        Environment("llama_cpp", "3.11", builds="llama-cpp-python", cmake=LLAMA_SERVER),
    )
}


def prepare(environment: Environment, index: Sequence[str] = ()) -> Path:
    """Creates the environment if it does not exist, and returns its interpreter.

    Args:
      index: pip's options for finding torch, such as `--index-url` and an index with builds for CPUs.

    Raises:
      CannotInstall: The version of Python is missing, or a package is not available.
    """
    stamp = environment.folder / "stamp"
    wanted = hashlib.sha256(environment.lock.read_bytes() + repr(environment).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return environment.interpreter
    make(environment)
    install(environment, index)
    stamp.write_text(wanted)
    return environment.interpreter


def make(environment: Environment) -> None:
    """Creates an empty environment in place of an unfinished one."""
    name = f"python{environment.python}"
    found = next((path for path in candidates(name) if works(path)), None)
    if found is None:
        raise CannotInstall(f"needs {name} with venv, and there is none on PATH")
    say(f"making an environment for {environment.name} with {name}")
    run([found, "-m", "venv", "--clear", str(environment.folder)], {})


def candidates(name: str) -> list[str]:
    """Yields all interpreters on PATH, since the first may be a shim for a version that is not installed."""
    paths = (shutil.which(name, path=folder) for folder in os.environ.get("PATH", "").split(os.pathsep))
    return [path for path in paths if path is not None]


def works(python: str) -> bool:
    command = [python, "-I", "-c", "import ensurepip, venv"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def install(environment: Environment, index: Sequence[str]) -> None:
    """Installs torch by name, and all else by hash."""
    pip = [str(environment.interpreter), "-m", "pip", "install", "--no-deps", "--disable-pip-version-check"]
    locked = [*pip, "--require-hashes", "--requirement"]
    if environment.torch:
        say(f"{environment.name}: installing {' and '.join(environment.torch)}")
        run([*pip, *index, *environment.torch], {})
    say(f"{environment.name}: installing {environment.lock.name}")
    if environment.builds is None:
        run([*locked, str(environment.lock)], {})
        return
    tools = environment.folder / "tools.txt"
    tools.write_text(without(environment.lock.read_text(), environment.builds))
    run([*locked, str(tools)], {})
    say(f"{environment.name}: compiling {environment.builds}, which takes many minutes")
    path = os.pathsep.join([str(environment.folder / "bin"), os.environ.get("PATH", "")])
    build = {"PATH": path, "CMAKE_ARGS": " ".join(environment.cmake)}
    run([*locked, str(environment.lock), "--no-build-isolation"], build)


def without(lock: str, package: str) -> str:
    """Returns a lock without one of its packages."""
    lines, keeps = [], True
    for line in lock.splitlines():
        if line[:1].isalnum():
            keeps = not line.startswith(f"{package}==")
        if keeps:
            lines.append(line)
    return "\n".join(lines) + "\n"


def run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Runs a command that has to succeed; its output goes to stderr if it does not."""
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode:
        output = done.stdout.decode(errors="replace")
        print(output, file=sys.stderr)
        raise CannotInstall(reason(output) or f"{command[0]} ended with status {done.returncode}")


def reason(output: str) -> str:
    """Returns the line of pip's output that names the problem."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.upper().startswith("ERROR")]
    return (errors or lines or [""])[-1][:160]


def lock_all() -> None:
    """Resolves every lock again with uv. The files contain no address of an index."""
    for environment in ENVIRONMENTS.values():
        say(f"locking {environment.lock.name}")
        source = environment.lock.with_suffix(".in")
        override = REQUIREMENTS / ("without_torch.override" if environment.torch else f"{environment.name}.override")
        overrides = ["--override", str(override.relative_to(HERE))] if override.is_file() else []
        how = ["--universal", "--generate-hashes", "--python-version", environment.python, "--no-emit-index-url"]
        header = ["--custom-compile-command", "python benchmarks/peers/run.py --lock"]
        files = [str(source.relative_to(HERE)), *overrides, "--output-file", str(environment.lock.relative_to(HERE))]
        subprocess.run(["uv", "pip", "compile", "--quiet", *files, *how, *header], cwd=HERE, check=True)


def say(text: str) -> None:
    """Reports progress on stderr, since stdout is for the result."""
    print(f"peers: {text}", file=sys.stderr, flush=True)
