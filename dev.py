#!/usr/bin/env python3
"""One way in, from a bare checkout: `python3 dev.py serve`, `python3 dev.py test`.

Python 3.8 or later runs this file. It installs uv if uv is missing, and lets it find or download a Python for Roost,
create a virtual environment and install the packages that `requirements/` locks. Then the job replaces this process.
If nothing has changed since the last time, the job starts immediately.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent
FLOOR = (3, 12)
VERSIONS = ("3.13", "3.14", "3.12")  # the one Roost is tested on comes first
NATIVE = [*sorted((ROOT / "kernels/native").glob("csrc/*")), ROOT / "kernels/native/build.py"]  # compiled with Roost
UNFINISHED = "unfinished"
SPINNER = "|/-\\"
TICK_S = 0.2  # between two looks of the spinner on a terminal
LINE_EVERY_S = 10.0  # between two lines where there is no terminal
UV = "uv"
DOCS = "docs"
AUDIT = "audit"
GPU_COMPILE = "gpu-compile"
IMAGE_LOCKS = ("cpu", "tpu", "cuda13", "buckets", "otel")  # of which the Dockerfile installs some
CLIENTS = {
    "clients": VERSIONS,
    "clients-openai2": VERSIONS,
    "clients-neighbours": VERSIONS,
    "clients-aider": ("3.12",),
    "clients-open-webui": ("3.12",),
}
"""Locks that are installed without Roost, each for some of tests/clients, and the Pythons that they take."""
NO_TESTS = 5  # how pytest ends that was left without a test
NODE_CLIENTS = ROOT / "tests" / "clients" / "node"
SCRIPTS = ("tests", "benchmarks", "tools", "examples")  # whose types are checked beside those of the packages
UNCHECKED = ("tests/clients/", "tests/e2e/toy_feature/")  # they need another environment, or a place in the package

USAGE = """\
usage: python3 dev.py <job> [arguments]

  serve        start the server; arguments go to `roost serve`
  test         run the tests, with --all those that take longer too; other arguments go to pytest
  test-sweep   run the cases and examples of large programs that `test` leaves out; arguments go to pytest
  test-bits    run the tests that compare bits as on a processor with AVX2 alone; arguments go to pytest
  test-shuffled  run the tests beside busy loops, in ten orders or in those that the arguments number
  test-compat  ask the server through other people's clients and validators; arguments go to pytest
  test-clients  the same for agents, their frameworks, clients for Node, and proxies; arguments go to pytest
  test-robust  load and faults, done to real servers for some minutes; arguments go to pytest
  test-mesh    serve from several devices, and from several processes as hosts; arguments go to pytest
  test-tpu     compile for a real TPU, without one (Linux x86-64); arguments go to pytest
  test-gpu     compile for NVIDIA GPUs, without one (Linux x86-64); arguments go to pytest
  test-deploy  check the Helm chart, manifests, alerts, Dockerfile and proxies (Linux x86-64); arguments go to pytest
  manifests    render deploy/manifests anew from the Helm chart (Linux x86-64)
  release      build the sdist and wheels of this commit into dist/ and try them; --tag vX.Y.Z checks a tag
  audit        look up known vulnerabilities of what images install (needs the index's own advisories)
  docs         write the reference from the code and build the documentation into site/; --serve shows it
  lint         ruff and mypy
  mutants      plant wrong lines that tests once missed, and demand that they notice each
  coverage     run the tests that compile no model, and print which share of lines and branches they reach
  lock         resolve requirements/*.txt anew; arguments go to `uv pip compile`, such as --upgrade
"""


class Problem(Exception):
    """Something the reader can fix; its text says what is wrong and how to fix it."""


class Job(NamedTuple):
    """What a word on the command line needs installed, and what it then does."""

    locks: tuple[str, ...]
    run: Callable[[Path, Sequence[str]], int]
    venv: str = ".venv"
    checkout: bool = True  # whether Roost itself is installed


def say(text: str) -> None:
    """Tells what is being done; on stderr, as stdout belongs to the job."""
    print(f"dev.py: {text}", file=sys.stderr, flush=True)


# --- an environment that holds what is locked


def python_of(venv: Path) -> Path:
    """Returns the environment's own interpreter."""
    return venv / "bin" / "python"


def stamp_of(venv: Path) -> Path:
    """Returns the file inside the environment that tells what was installed there."""
    return venv / "roost-stamp"


def lock_file(lock: str) -> Path:
    """Returns the requirements file of a lock's name."""
    return ROOT / "requirements" / f"{lock}.txt"


def fingerprint(locks: tuple[str, ...]) -> str:
    """Returns a hash of all that an installation depends on: the locks, the project and where it lies."""
    digest = hashlib.sha256(str(ROOT).encode())
    for path in (ROOT / "pyproject.toml", *NATIVE, *(lock_file(lock) for lock in locks)):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def is_current(venv: Path, locks: tuple[str, ...]) -> bool:
    """Tells whether the environment holds these locks; `dev` holds all of `cpu`."""
    if not os.access(python_of(venv), os.X_OK) or not stamp_of(venv).exists():
        return False
    enough = [locks, ("dev",)] if locks == ("cpu",) else [locks]
    return stamp_of(venv).read_text() in map(fingerprint, enough)


def prepare(venv: Path, locks: tuple[str, ...], checkout: bool = True, versions: tuple[str, ...] = VERSIONS) -> Path:
    """Brings the environment up to date if it is not, and returns its interpreter."""
    if is_current(venv, locks):
        return python_of(venv)
    uv = find_uv()
    if not is_usable(venv):
        make_venv(venv, uv, versions)
    stamp = stamp_of(venv)
    stamp.write_text(UNFINISHED)
    install(venv, locks, uv, checkout)
    stamp.write_text(fingerprint(locks))
    return python_of(venv)


def find_uv() -> str:
    """Returns the path of uv: of the one on PATH, or else of one that pip installs as requirements/uv.txt locks it."""
    on_path = shutil.which("uv")
    venv = ROOT / f".venv-{UV}"
    if on_path is None and not is_current(venv, (UV,)):
        advice = "the lines above say why. On Debian or Ubuntu, pip comes with: apt-get install python3-venv"
        make = [sys.executable, "-m", "venv", "--clear", str(venv)]
        call(make, f"making {venv.name}", f"could not make {venv.name}; {advice}")
        pip = [str(python_of(venv)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        wanted = ["--require-hashes", "--requirement", str(lock_file(UV))]
        call([*pip, *wanted], "fetching and installing uv with pip", f"could not install uv; {advice}")
        stamp_of(venv).write_text(fingerprint((UV,)))
    return on_path or str(venv / "bin" / "uv")


def is_usable(venv: Path) -> bool:
    """Tells whether an environment can be installed into: whole, and of a Python that Roost takes."""
    if not stamp_of(venv).exists() or stamp_of(venv).read_text() == UNFINISHED:
        return False
    program = f"import sys; sys.exit(sys.version_info < {FLOOR})"
    return runs(python_of(venv), program)


def runs(python: Path | str, program: str) -> bool:
    """Tells whether an interpreter is there and runs a program without an error."""
    try:
        return subprocess.run([str(python), "-I", "-c", program], stdout=DEVNULL, stderr=DEVNULL).returncode == 0
    except OSError:
        return False


def make_venv(venv: Path, uv: str, versions: tuple[str, ...] = VERSIONS) -> None:
    """Makes an empty environment with pip, in place of a broken one if need be."""
    found = (find_python(uv, version, folders) for folders in ((), pyenv_folders()) for version in versions)
    python = next(filter(None, found), versions[0])  # which uv downloads
    doing = f"{'repairing' if venv.exists() else 'making'} {venv.name} with {python}"
    command = [uv, "venv", "--quiet", "--clear", "--seed", "--python", python, str(venv)]
    call(command, doing, f"could not make {venv.name} with {python}; the lines above say why")


def pyenv_folders() -> list[str]:
    """Returns the folders of pyenv's Pythons, of which PATH leads to one version."""
    return sorted(map(str, Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*/bin")))


def find_python(uv: str, version: str, folders: Sequence[str] = ()) -> str | None:
    """Returns the path of a Python of this version on the machine, such as 3.12, if uv finds one that runs.

    Args:
      folders: Folders to look in before those of PATH.
    """
    command = [uv, "python", "find", "--system", "--no-project", "--no-python-downloads", version]
    environment = {**tool_environment(), "PATH": os.pathsep.join([*folders, os.environ.get("PATH", "")])}
    done = subprocess.run(command, env=environment, stdout=PIPE, stderr=DEVNULL, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def install(venv: Path, locks: tuple[str, ...], uv: str, checkout: bool) -> None:
    """Installs the locked packages, each checked against its hash, then the checkout itself if it is wanted."""
    files = [str(lock_file(lock).relative_to(ROOT)) for lock in locks]
    installer = [uv, "pip", "install", "--quiet", "--python", str(python_of(venv)), "--no-deps"]
    wanted = [word for file in files for word in ("--requirement", file)]
    named, again = " and ".join(files), "the lines above say why. The same command tries again"
    locked = [*installer, "--require-hashes", *wanted]  # a lock names all that is needed
    call(locked, f"fetching and installing {named}", f"could not install {named}; {again}")
    if checkout:
        native = [*installer, "--no-build-isolation", "--editable", "."]
        call(native, "installing Roost and compiling its native kernels", f"could not install Roost; {again}")


def call(command: Sequence[str], doing: str, failed: str) -> None:
    """Runs a command that has to succeed, from the root, says what it does, and shows that it goes on."""
    say(doing)
    process = subprocess.Popen(command, cwd=ROOT, env=tool_environment())
    try:
        wait(process, doing)
    except BaseException:  # Ctrl-C among others, which must not leave an installer behind
        process.kill()
        process.wait()
        raise
    if process.returncode != 0:
        raise Problem(failed)


def wait(process: subprocess.Popen[bytes], doing: str) -> None:
    """Waits for the end of a command: on a terminal with a clock that moves, else with a line now and then."""
    is_terminal, began = sys.stderr.isatty(), time.monotonic()
    interval = TICK_S if is_terminal else LINE_EVERY_S
    while True:
        try:
            process.wait(interval)
            break
        except subprocess.TimeoutExpired:
            seconds = time.monotonic() - began
            if is_terminal:
                turn = SPINNER[int(seconds / TICK_S) % len(SPINNER)]
                print(f"\r{turn} {seconds:.0f} s ", end="", file=sys.stderr, flush=True)
            else:
                say(f"{doing}, for {seconds:.0f} s now")
    if is_terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def tool_environment() -> dict[str, str]:
    """Returns our environment. uv gets the index of pip, whose settings it ignores, and trusts as the system does."""
    environment = {"UV_SYSTEM_CERTS": "1", **os.environ}
    if "UV_DEFAULT_INDEX" not in environment and (index := index_of_pip()):
        environment["UV_DEFAULT_INDEX"] = index
    return environment


@functools.lru_cache(maxsize=None)  # noqa: UP033 (functools.cache came with Python 3.9)
def index_of_pip() -> str:
    """Returns the package index that pip is set to take; empty for PyPI, or without pip."""
    if index := os.environ.get("PIP_INDEX_URL"):
        return index
    command = [sys.executable, "-m", "pip", "config", "list"]  # since "get" finds nothing in some versions of pip
    settings = subprocess.run(command, stdout=PIPE, stderr=DEVNULL, text=True).stdout
    found = re.search(r"^(?:global|install)\.index-url='(.*)'$", settings, re.MULTILINE)
    return found[1] if found else ""


# --- the jobs


def become(python: Path, module: str, *arguments: str) -> NoReturn:
    """Replaces this process by a module; -P keeps `kernels/` from being importable under that name."""
    command = [str(python), "-P", "-m", module, *arguments]
    os.execv(command[0], command)


def serve(python: Path, arguments: Sequence[str]) -> int:
    """Starts the server."""
    become(python, "roost.server", "serve", *arguments)


BY_FILE = ("--numprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder")
"""How pytest runs a suite on two cores: two more processes work while others wait for servers, databases and timers. A
file's tests share what they start, so they stay in one process. Files keep their order, since those with the fewest
tests take longest: the servers' come early, and no worker idles at the end."""

COVERED = ("tests/server", *(f"tests/engine/{name}" for name in ("types", "planning", "scheduling", "simulation")))
"""Folders of the tests that compile no model. `tool.coverage` in pyproject.toml names the packages that they test."""

BY_TEST = ("--numprocesses", "2", "--dist", "worksteal")
"""The same for tests that compile, never wait, share nothing, and take up to some minutes."""

COMPILED = ("--timeout", "1800")
"""Seconds after which such a test hangs, on any machine."""


def test(python: Path, arguments: Sequence[str]) -> int:
    """Runs the tests that need no accelerator: on two cores, or on one those that the arguments name.

    With `--all`, it runs those that take longer too; with `--files 400`, it lists the seconds of 400 files.
    """
    os.chdir(ROOT)
    runs_whole = re.fullmatch(r"( --all| --files[= ]\d+)*", "".join(f" {word}" for word in arguments))
    become(python, "pytest", *arguments, *(BY_FILE if runs_whole else ()))


def test_sweep(python: Path, arguments: Sequence[str]) -> int:
    """Runs more cases of kernels, samplers and engines than `test`, and property tests with more examples."""
    options = ["-m", "sweep", "--hypothesis-profile", "sweep"]
    return test(python, [*options, *(arguments or ("tests/engine", "tests/kernels", *BY_FILE))])


def test_bits(python: Path, arguments: Sequence[str]) -> int:
    """Runs the tests that compare bits once more on a processor with AVX-512, compiled as for one without.

    Code for AVX-512 does not run on a processor without it, so there the job names the tests that were not run.
    """
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file() or "avx512f" not in cpuinfo.read_text().split():
        say("NOT RUN: the tests that compare bits, on AVX-512. This processor lacks it, and `test` ran them as it is")
        return 0
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), "--xla_cpu_max_isa=AVX2"]).strip()
    return test(python, ["-m", "bits and not sweep", *(arguments or ("tests/engine", "tests/kernels", *BY_FILE))])


def test_shuffled(python: Path, arguments: Sequence[str]) -> int:
    """Runs the tests in some orders, each beside two busy loops. No test may depend on the order or on the time."""
    command = [str(python), "-P", "-m", "pytest", *BY_FILE, "--timeout", "1200"]
    loops = [subprocess.Popen([str(python), "-c", "while True: pass"]) for _ in range(2)]
    try:
        for order in arguments or map(str, range(1, 11)):
            say(f"running the tests in order {order}")
            status = subprocess.run(command, cwd=ROOT, env={**os.environ, "TEST_ORDER": order}).returncode
            if status != 0:
                return status
        return 0
    finally:
        for loop in loops:
            loop.kill()


def test_tpu(python: Path, arguments: Sequence[str]) -> int:
    """Runs the tests that compile for a real TPU; `-m tpu_compile tests/tpu` adds their other cases."""
    return test_compiled(python, "tests/tpu", "tpu_compile and not sweep", arguments)


def test_gpu(python: Path, arguments: Sequence[str]) -> int:
    """Runs the tests that compile for NVIDIA GPUs."""
    return test_compiled(python, "tests/gpu", "gpu_compile", arguments)


def test_compiled(python: Path, folder: str, markers: str, arguments: Sequence[str]) -> int:
    """Runs tests that compile for chips, and notes for which code all of them passed.

    With `--if-changed`, it runs none if that was today's code.
    """
    sources = [str(python), "-P", "tools/programs/compiled_sources.py", folder]
    if "--if-changed" in arguments:
        if subprocess.run(sources, cwd=ROOT).returncode == 0:
            say(f"{folder}: all of it passed with this code, and is not compiled again")
            return 0
        arguments = ()
    command = [str(python), "-P", "-m", "pytest", "-m", markers, *COMPILED, *(arguments or (folder, *BY_TEST))]
    status = subprocess.run(command, cwd=ROOT).returncode
    return status or (0 if arguments else subprocess.run([*sources, "--write"], cwd=ROOT).returncode)


def test_compat(python: Path, arguments: Sequence[str]) -> int:
    """Runs the tests that need other people's clients and validators, whose warnings are not ours to heed."""
    return test(python, ["-m", "compat", "-W", "default", *arguments])


def test_clients(python: Path, arguments: Sequence[str]) -> int:
    """Runs the tests of clients that cannot be installed beside the server, which runs in an environment of its own."""
    tests = Path("tests", "clients")
    apart = {lock: str(tests / lock.removeprefix("clients-")) for lock in CLIENTS if lock != "clients"}
    together = [str(tests), *(f"--ignore={folder}" for folder in apart.values())]
    environments = {
        lock: prepare(ROOT / f".venv-{lock}", (lock,), checkout=False, versions=versions)
        for lock, versions in CLIENTS.items()
    }
    install_node_clients(environments["clients"].parents[1] / "node")
    options = ["-c", str(tests / "pytest.ini"), "--confcutdir", str(tests), *arguments]
    environment = {**os.environ, "ROOST_PYTHON": str(python)}
    statuses = []
    for lock, interpreter in environments.items():
        folders = [apart[lock]] if lock in apart else together
        command = [str(interpreter), "-P", "-m", "pytest", *folders, *options]
        statuses.append(subprocess.run(command, cwd=ROOT, env=environment).returncode)
    ran = [status for status in statuses if status != NO_TESTS]  # as with -k and a name of another environment
    return max(ran, default=NO_TESTS)


def install_node_clients(folder: Path) -> None:
    """Installs the locked packages for Node into a folder, if there is npm."""
    wanted = [NODE_CLIENTS / name for name in ("package.json", "package-lock.json", ".npmrc")]
    npm = shutil.which("npm")
    if npm is None:
        say("there is no npm, so the clients for Node are left out")
        return
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in wanted)).hexdigest()
    stamp = folder / "roost-stamp"
    if stamp.exists() and stamp.read_text() == digest:
        return
    folder.mkdir(exist_ok=True)
    for path in wanted:
        shutil.copy(path, folder)
    failed = "could not install the clients for Node; the lines above say why. The same command tries again"
    command = [npm, "ci", "--prefix", str(folder), "--no-audit", "--no-fund", "--loglevel", "error"]
    call(command, "fetching and installing tests/clients/node/package-lock.json with npm", failed)
    stamp.write_text(digest)


def test_robust(python: Path, arguments: Sequence[str]) -> int:
    """Runs the tests that put load on servers and do them harm."""
    return test(python, ["-m", "robust", *(arguments or ("tests/e2e", "tests/robust", *BY_FILE))])


def test_mesh(python: Path, arguments: Sequence[str]) -> int:
    """Runs the tests of models that are cut over devices and hosts; the devices are made of the CPU."""
    return test(python, ["-m", "mesh", *(arguments or ("tests/engine", "tests/e2e", *BY_FILE))])


def test_deploy(python: Path, arguments: Sequence[str]) -> int:
    """Runs the tests that need helm, validators of Kubernetes' objects, Prometheus, and reverse proxies."""
    return test(python, ["-m", "deploy", *(arguments or ("tests/deploy", *BY_FILE))])


def manifests(python: Path, _: Sequence[str]) -> int:
    """Renders the plain manifests."""
    return subprocess.run([str(python), "deploy/render.py"], cwd=ROOT).returncode


def release(python: Path, arguments: Sequence[str]) -> int:
    """Builds a release into dist/, and installs it on each Python that Roost takes and that is here."""
    built = subprocess.run([str(python), "tools/build_release.py", *arguments], cwd=ROOT)
    if built.returncode != 0:
        return built.returncode
    uv, folders = find_uv(), pyenv_folders()
    found = {version: find_python(uv, version, folders) for version in sorted(VERSIONS)}
    fit = {version: python for version, python in found.items() if python and runs(python, "import ensurepip, venv")}
    for version in sorted(set(VERSIONS) - set(fit)):
        say(f"there is no Python {version} that makes environments here, so the wheels are not tried on it")
    named = [word for path in fit.values() for word in ("--python", path)]
    return subprocess.run([str(python), "tools/check_release.py", *named], cwd=ROOT).returncode


def audit(python: Path, arguments: Sequence[str]) -> int:
    """Looks up known vulnerabilities of what images install; fails where the index, such as a mirror, has none."""
    locks = [f"--requirement={lock_file(name)}" for name in IMAGE_LOCKS]
    become(python, "pip_audit", "--strict", "--disable-pip", "--require-hashes", *locks, *arguments)


DOCS_ADDRESS = "localhost:8008"
"""Address of the documentation; Roost has port 8000."""


def docs(python: Path, arguments: Sequence[str]) -> int:
    """Writes what follows from the code, and builds the site; a warning, such as a link to nowhere, is an error."""
    roost = prepare(ROOT / ".venv", ("cpu",))
    for tool in ("tools/reference_pages.py", "tools/draw_pictures.py"):
        call([str(roost), "-P", tool], f"running {tool}", f"{tool} failed; the lines above say why")
    program = [str(python.with_name("zensical"))]
    if "--serve" in arguments:
        say(f"open http://{DOCS_ADDRESS} once the site is built")
        command = [*program, "serve", "--dev-addr", DOCS_ADDRESS, *(word for word in arguments if word != "--serve")]
    else:
        command = [*program, "build", "--clean", "--strict", *arguments]
    return subprocess.run(command, cwd=ROOT).returncode


def mutants(python: Path, _: Sequence[str]) -> int:
    """Plants wrong lines that tests once missed, and demands that they notice each."""
    return subprocess.run([str(python), "-P", "tools/mutants.py"], cwd=ROOT).returncode


def coverage(python: Path, _: Sequence[str]) -> int:
    """Runs the tests that compile no model, and prints what they reach; fails below coverage's `fail_under`."""
    (ROOT / "build").mkdir(exist_ok=True)
    run = [str(python), "-P", "-m", "coverage"]
    for command in (
        [*run, "erase"],
        [*run, "run", "-m", "pytest", *COVERED, *BY_FILE],
        [*run, "combine", "--quiet"],
        [*run, "report", "--skip-covered"],
    ):
        status = subprocess.run(command, cwd=ROOT).returncode
        if status != 0:
            return status
    return 0


def lint(python: Path, _: Sequence[str]) -> int:
    """Checks style, format and types; runs all three even if the first complains."""
    files = checked_files()
    folders = [".types", *sorted({os.path.dirname(file) for file in files if file.endswith(".py")})]
    checks = (["ruff", "check"], ["ruff", "format", "--check"], ["mypy", *files])
    environment = {**os.environ, "MYPYPATH": os.pathsep.join(filter(None, folders))}
    run = [[str(python), "-P", "-m", *check] for check in checks]
    return max(subprocess.run(command, cwd=ROOT, env=environment).returncode for command in run)


def checked_files() -> list[str]:
    """Returns what mypy checks: the packages, which `.types/roost` shows it as parts of `roost`, and all scripts.

    Scripts are no packages, so their names have to differ. Those of `conftest.py` are links with their folder's name.
    """
    show_mypy(ROOT, "roost")
    files = ["dev.py", *(f".types/roost/{name}" for name in ("server", "engine", "kernels"))]
    for path in sorted(path for folder in SCRIPTS for path in (ROOT / folder).rglob("*.py")):
        file = str(path.relative_to(ROOT))
        if file.startswith(UNCHECKED):
            continue
        is_conftest = path.name == "conftest.py"
        files.append(show_mypy(path, f"conftests/{file.replace('/', '_')}") if is_conftest else file)
    return files


def show_mypy(path: Path, name: str) -> str:
    """Makes `.types/NAME` a link to a path of the checkout, and returns it."""
    link = ROOT / ".types" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(path, link.parent), target_is_directory=path.is_dir())
    return str(link.relative_to(ROOT))


def lock(_: Path, arguments: Sequence[str]) -> int:
    """Resolves every lock for all platforms; `dev` goes first and the others keep to its versions."""
    uv = find_uv()
    for name in (UV, "dev", *IMAGE_LOCKS, "compat", "deploy", GPU_COMPILE, DOCS, AUDIT, *CLIENTS):
        failed = f"could not lock {name}; the lines above say why"
        call([uv, *lock_arguments(name), *arguments], f"locking requirements/{name}.txt", failed)
    return 0


def lock_arguments(name: str) -> list[str]:
    """Returns uv's arguments for one lock; none of them lets an index's address into the file."""
    extra = [] if name == "cpu" else ["--extra", name]
    constraint = [] if name == "dev" else ["--constraint", "requirements/dev.txt"]
    how = ["--universal", "--generate-hashes", "--python-version", ".".join(map(str, FLOOR))]
    header = ["--custom-compile-command", "python3 dev.py lock"]
    inputs = ["pyproject.toml", "requirements/build.in", *extra, *constraint]
    if name == "deploy":  # tools alone: what they need of other packages is in `dev`, the rest they carry for nothing
        inputs = ["requirements/deploy.in", "--no-deps", *constraint]
    if name == GPU_COMPILE:  # at the versions with which programs run
        inputs = [f"requirements/{name}.in", "--no-deps", "--constraint", "requirements/cuda13.txt"]
    if name in (UV, DOCS, AUDIT, *CLIENTS):
        inputs = [f"requirements/{name}.in"]  # they share no environment with Roost, whose versions some cannot take
    if (ROOT / f"requirements/{name}.override").exists():
        inputs += ["--override", f"requirements/{name}.override"]
    return ["pip", "compile", "--quiet", *inputs, *how, *header, "--output-file", f"requirements/{name}.txt"]


JOBS = {
    "serve": Job(("cpu",), serve),
    "test": Job(("dev",), test),
    "test-sweep": Job(("dev",), test_sweep),
    "test-bits": Job(("dev",), test_bits),
    "test-shuffled": Job(("dev",), test_shuffled),
    "test-tpu": Job(("dev", "tpu"), test_tpu, venv=".venv-tpu"),
    "test-gpu": Job(("dev", GPU_COMPILE), test_gpu, venv=".venv-gpu"),
    "test-compat": Job(("dev", "compat"), test_compat, venv=".venv-compat"),
    "test-clients": Job(("dev",), test_clients),
    "test-robust": Job(("dev",), test_robust),
    "test-mesh": Job(("dev",), test_mesh),
    "test-deploy": Job(("dev", "deploy"), test_deploy, venv=".venv-deploy"),
    "manifests": Job(("dev", "deploy"), manifests, venv=".venv-deploy"),
    "release": Job(("dev", "deploy"), release, venv=".venv-deploy"),
    "audit": Job((AUDIT,), audit, venv=".venv-audit", checkout=False),
    "docs": Job((DOCS,), docs, venv=".venv-docs", checkout=False),
    "lint": Job(("dev",), lint),
    "mutants": Job(("dev",), mutants),
    "coverage": Job(("dev",), coverage),
    "lock": Job((), lock),
}


def unknown(word: str) -> str:
    """Returns that there is no such job, and which one was probably meant."""
    meant = difflib.get_close_matches(word, JOBS, n=1)
    hint = f"did you mean {meant[0]}? " if meant else ""
    return f"there is no job {word!r}; {hint}python3 dev.py --help lists all"


def main(arguments: Sequence[str]) -> int:
    """Runs the job that the first word names; the others are the job's own."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] not in JOBS:
        say(unknown(arguments[0]))
        return 2
    job = JOBS[arguments[0]]
    try:
        python = prepare(ROOT / job.venv, job.locks, job.checkout) if job.locks else Path(sys.executable)
        return job.run(python, arguments[1:])
    except (Problem, OSError) as problem:
        say(str(problem))
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
