"""dev.py: which Python it picks, when it installs, what it says when it cannot. Nothing is installed here."""

import ast
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load_dev() -> ModuleType:
    """Imports dev.py, which is no part of any package."""
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dev = load_dev()


def test_it_has_the_syntax_of_python_3_8() -> None:
    """Annotations may be newer, as nobody evaluates them."""
    tree = ast.parse((ROOT / "dev.py").read_text(), feature_version=(3, 8))
    assert any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("nonsense", "there is no job 'nonsense'; python3 dev.py --help lists all"),
        ("tset", "there is no job 'tset'; did you mean test? python3 dev.py --help lists all"),
    ],
)
def test_an_unknown_job_is_one_line(word: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert dev.main([word]) == 2
    assert capsys.readouterr() == ("", f"dev.py: {line}\n")
    assert dev.main(["--help"]) == 0
    assert capsys.readouterr() == (dev.USAGE, "")


# --- uv, and which Python


def script(path: Path, text: str) -> str:
    """Writes a shell script that poses as a program, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def finds(tmp_path: Path, *versions: str) -> str:
    """Returns a uv that finds Pythons of these versions only."""
    return script(
        tmp_path / "uv",
        f'for last; do :; done; case "$last" in {"|".join(versions)}) echo /at/$last;; *) exit 2;; esac',
    )


@pytest.mark.parametrize("source", ["variable", "file"])
def test_uv_takes_the_index_that_pip_takes(source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dev, "index_of_pip", dev.index_of_pip.__wrapped__)  # which has no cache
    index, own = ((tmp_path / name).as_uri() for name in ("index", "own"))
    for name in ("UV_DEFAULT_INDEX", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {index}\n")
    if source == "file":
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    else:
        monkeypatch.setenv("PIP_INDEX_URL", index)
    assert dev.tool_environment()["UV_DEFAULT_INDEX"] == index
    monkeypatch.setenv("UV_DEFAULT_INDEX", own)
    assert dev.tool_environment()["UV_DEFAULT_INDEX"] == own


def test_folders_come_before_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert dev.find_python(script(tmp_path / "uv", "echo $PATH"), "3.12", ["/first"]) == "/first:/usr/bin:/bin"


@pytest.mark.parametrize(
    ("versions", "wanted", "taken"),
    [
        (("3.12", "3.13"), dev.VERSIONS, "/at/3.13"),
        (("3.12",), dev.VERSIONS, "/at/3.12"),
        (("3.11",), dev.VERSIONS, "3.13"),
        (("3.12", "3.13"), ("3.12",), "/at/3.12"),
    ],
    ids=["the tested version first", "another that fits", "uv downloads one", "a client's version"],
)
def test_which_python_an_environment_gets(
    tmp_path: Path, venv: Path, commands: "Commands", versions: tuple[str, ...], wanted: tuple[str, ...], taken: str
) -> None:
    dev.make_venv(venv, finds(tmp_path, *versions), wanted)
    assert commands[0][commands[0].index("--python") + 1] == taken


def test_a_python_that_only_pyenv_has_is_found(
    tmp_path: Path, venv: Path, commands: "Commands", monkeypatch: pytest.MonkeyPatch
) -> None:
    python = script(tmp_path / "pyenv/versions/3.12.1/bin/python3.12", "")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("PATH", "/nowhere")
    dev.make_venv(venv, script(tmp_path / "uv", "command -v python3.12"), ("3.12",))
    assert commands[0][commands[0].index("--python") + 1] == python


def test_an_interpreter_runs_a_program_or_does_not(tmp_path: Path) -> None:
    assert dev.runs(sys.executable, "import sys")
    assert not dev.runs(sys.executable, "import roost_has_no_such_module")
    assert not dev.runs(tmp_path / "python", "import sys")
    assert not dev.runs(script(tmp_path / "python", "kill -9 $$"), "import sys")


def test_uv_on_path_is_taken(venv: Path, commands: "Commands", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev.shutil, "which", lambda _: "/bin/uv")
    assert dev.find_uv() == "/bin/uv"
    assert commands == []


def test_without_uv_pip_installs_the_locked_one_once(venv: Path, commands: "Commands") -> None:
    for _ in range(2):
        assert dev.find_uv() == str(dev.ROOT / ".venv-uv" / "bin" / "uv")
    make, install = commands
    assert make[:3] == [sys.executable, "-m", "venv"]
    assert install[-3:] == ["--require-hashes", "--requirement", str(dev.ROOT / "requirements" / "uv.txt")]


@pytest.mark.parametrize("step", ["venv", "pip"])
def test_a_uv_that_was_not_installed_is_explained(venv: Path, commands: "Commands", step: str) -> None:
    commands.fail_at = step
    with pytest.raises(dev.Problem, match=r"^could not .*apt-get install python3-venv$"):
        dev.find_uv()
    commands.fail_at = ""
    dev.find_uv()
    assert commands[-1][2] == "pip"


# --- when it installs


class Commands(list[list[str]]):
    """Stands in for dev.call: notes each command; making an environment leaves a Python there."""

    def __init__(self) -> None:
        self.fail_at = ""

    def __call__(self, command: list[str], doing: str, failed: str) -> None:
        self.append(command)
        if self.fail_at and self.fail_at in command:
            raise dev.Problem(failed)
        if "venv" in command:
            folder = next(Path(word) for word in command if Path(word).name.startswith(".venv"))
            script(folder / "bin" / "python", "exit 0")

    def made_venvs(self) -> int:
        return sum("venv" in command for command in self)

    def locks(self) -> list[str]:
        return [Path(word).stem for command in self for word in command if word.endswith(".txt")]


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with locks and no environment yet; returns where the environment goes."""
    (tmp_path / "requirements").mkdir()
    for lock in ("cpu", "dev", "uv"):
        (tmp_path / "requirements" / f"{lock}.txt").write_text(f"{lock}==1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    monkeypatch.setattr(dev.shutil, "which", lambda _: None)
    return tmp_path / ".venv"


@pytest.fixture
def commands(venv: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """The commands that dev.py would have run."""
    noted = Commands()
    monkeypatch.setattr(dev, "call", noted)
    return noted


@pytest.fixture
def uv(venv: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A uv on PATH, which finds a Python 3.13."""
    path = finds(venv.parent, "3.13")
    monkeypatch.setattr(dev.shutil, "which", lambda _: path)
    return path


def test_first_run_makes_the_environment_and_installs(venv: Path, commands: Commands, uv: str) -> None:
    assert dev.prepare(venv, ("cpu",)) == venv / "bin" / "python"
    make, packages, checkout = commands
    assert make[:2] == [uv, "venv"]
    assert "--require-hashes" in packages
    assert {"--no-deps", "--no-build-isolation", "--editable"} < set(checkout)


@pytest.mark.usefixtures("uv")
def test_second_run_does_nothing(venv: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    dev.prepare(venv, ("cpu",))
    commands.clear()
    monkeypatch.setattr(dev, "runs", lambda *words: pytest.fail(f"ran {words}"))
    dev.prepare(venv, ("cpu",))
    assert commands == []


@pytest.mark.usefixtures("uv")
@pytest.mark.parametrize("changed", ["requirements/cpu.txt", "pyproject.toml"])
def test_a_changed_file_installs_again_in_place(venv: Path, commands: Commands, changed: str) -> None:
    dev.prepare(venv, ("cpu",))
    commands.clear()
    (dev.ROOT / changed).write_text("changed\n")
    dev.prepare(venv, ("cpu",))
    assert commands.locks() == ["cpu"]
    assert commands.made_venvs() == 0


def test_a_moved_checkout_installs_again(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dev.fingerprint(("cpu",))
    monkeypatch.setattr(dev, "ROOT", dev.ROOT / "requirements" / "..")
    assert dev.fingerprint(("cpu",)) != before


@pytest.mark.usefixtures("uv")
def test_an_environment_without_the_checkout_gets_packages_alone(venv: Path, commands: Commands) -> None:
    dev.prepare(venv, ("cpu",), checkout=False)
    assert commands.locks() == ["cpu"]
    assert not any("--editable" in command for command in commands)


@pytest.fixture
def node_clients(venv: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a lock for Node and an npm; returns where the packages go."""
    folder = venv.parent / "node_lock"
    folder.mkdir()
    for name in ("package.json", "package-lock.json", ".npmrc"):
        (folder / name).write_text("{}")
    monkeypatch.setattr(dev, "NODE_CLIENTS", folder)
    monkeypatch.setattr(dev.shutil, "which", lambda _: "npm")
    return venv.parent / "node"


def test_clients_for_node_are_installed_once_for_each_lock(node_clients: Path, commands: Commands) -> None:
    for _ in range(2):
        dev.install_node_clients(node_clients)
    assert [command[:2] for command in commands] == [["npm", "ci"]]
    (dev.NODE_CLIENTS / "package-lock.json").write_text("{ }")
    dev.install_node_clients(node_clients)
    assert len(commands) == 2
    assert (node_clients / "package-lock.json").read_text() == "{ }"


def test_without_npm_the_clients_for_node_are_left_out(
    node_clients: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dev.shutil, "which", lambda _: None)
    dev.install_node_clients(node_clients)
    assert commands == []
    assert "no npm" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        ([0] * 5, 0),
        ([0, 5, 5, 5, 5], 0),
        ([5, 5, 0, 5, 5], 0),
        ([5] * 5, 5),
        ([1, 0, 0, 0, 0], 1),
        ([0, 0, 0, 0, 1], 1),
        ([5, 2, 5, 5, 5], 2),
    ],
)
def test_clients_fail_where_any_environment_does(
    monkeypatch: pytest.MonkeyPatch, statuses: list[int], status: int
) -> None:
    runs: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        runs.append(command)
        return subprocess.CompletedProcess(command, statuses[len(runs) - 1])

    monkeypatch.setattr(dev, "prepare", lambda venv, locks, checkout, versions: venv / "bin" / "python")
    monkeypatch.setattr(dev, "install_node_clients", lambda folder: None)
    monkeypatch.setattr(dev.subprocess, "run", run)
    assert dev.test_clients(Path("python"), ["-k", "chat"]) == status
    assert [Path(command[0]).parents[1].name for command in runs] == [f".venv-{lock}" for lock in dev.CLIENTS]
    apart = ["tests/clients/openai2", "tests/clients/neighbours", "tests/clients/aider", "tests/clients/open-webui"]
    assert [command[4 : command.index("-c")] for command in runs] == [
        ["tests/clients", *(f"--ignore={folder}" for folder in apart)],
        *([folder] for folder in apart),
    ]
    assert all(command[-2:] == ["-k", "chat"] for command in runs)


@pytest.mark.usefixtures("uv")
def test_the_test_environment_serves_too_but_not_the_other_way(venv: Path, commands: Commands) -> None:
    dev.prepare(venv, ("cpu",))
    dev.prepare(venv, ("dev",))
    dev.prepare(venv, ("cpu",))
    assert commands.locks() == ["cpu", "dev"]


@pytest.mark.usefixtures("uv")
def test_an_interrupted_installation_starts_over(venv: Path, commands: Commands) -> None:
    commands.fail_at = "--require-hashes"
    with pytest.raises(dev.Problem, match=r"could not install requirements/cpu\.txt"):
        dev.prepare(venv, ("cpu",))
    commands.fail_at = ""
    dev.prepare(venv, ("cpu",))
    assert commands.made_venvs() == 2
    assert dev.is_current(venv, ("cpu",))


@pytest.mark.usefixtures("uv")
def test_a_half_made_environment_is_repaired(venv: Path, commands: Commands) -> None:
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(venv / "gone")
    dev.prepare(venv, ("cpu",))
    assert commands.made_venvs() == 1


@pytest.mark.usefixtures("uv")
def test_an_environment_whose_python_is_gone_is_not_current(venv: Path, commands: Commands) -> None:
    dev.prepare(venv, ("cpu",))
    (venv / "bin" / "python").unlink()
    assert not dev.is_current(venv, ("cpu",))


@pytest.mark.usefixtures("uv")
def test_an_environment_of_an_older_python_is_remade(venv: Path, commands: Commands) -> None:
    dev.prepare(venv, ("cpu",))
    script(venv / "bin" / "python", "exit 1")
    dev.prepare(venv, ("dev",))
    assert commands.made_venvs() == 2


# --- which tests


@pytest.mark.parametrize(
    ("arguments", "is_whole"),
    [
        ("", True),
        ("--all", True),
        ("--files 400", True),
        ("--all --files=400", True),
        ("tests/test_dev.py", False),
        ("--all tests/test_dev.py --files 400", False),
        ("-m slow", False),
    ],
)
def test_a_whole_suite_has_several_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: str, is_whole: bool
) -> None:
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(dev, "become", lambda _, *words: started.append(words))
    monkeypatch.chdir(tmp_path)  # restores the folder that it leaves
    dev.test(Path("python"), arguments.split())
    assert started == [("pytest", *arguments.split(), *(dev.BY_FILE if is_whole else ()))]


# --- what it says


def run_dev(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs dev.py as a user does."""
    return subprocess.run([sys.executable, str(ROOT / "dev.py"), *arguments], capture_output=True, text=True)


def test_without_a_job_it_lists_them() -> None:
    answer = run_dev()
    assert answer.returncode == 2
    assert all(re.search(rf"^  {job} ", answer.stdout, re.MULTILINE) for job in dev.JOBS)
    assert run_dev("--help").returncode == 0


@pytest.mark.usefixtures("uv")
def test_a_problem_is_one_line(commands: Commands, capfd: pytest.CaptureFixture[str]) -> None:
    commands.fail_at = "--require-hashes"
    assert dev.main(["serve"]) == 1
    assert capfd.readouterr().err.splitlines()[-1] == (
        "dev.py: could not install requirements/cpu.txt; the lines above say why. The same command tries again"
    )


def test_a_failing_tool_is_a_problem(venv: Path) -> None:
    with pytest.raises(dev.Problem, match="could not"):
        dev.call(["false"], "trying", "could not")


def test_a_long_command_says_that_it_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command goes on until a line was written."""
    monkeypatch.setattr(dev, "LINE_EVERY_S", 0.01)
    mark = tmp_path / "mark"
    said: list[str] = []
    monkeypatch.setattr(dev, "say", lambda text: (said.append(text), len(said) > 1 and mark.touch()))
    dev.call(["sh", "-c", f"until [ -e {mark} ]; do :; done"], "installing all", "could not")
    assert said[0] == "installing all"
    assert re.fullmatch(r"installing all, for \d+ s now", said[1])


def test_on_a_terminal_a_clock_moves(tmp_path: Path) -> None:
    """And is wiped away at the end."""
    leader, follower = os.openpty()
    lines = ("import sys", "sys.path.insert(0, sys.argv[1])", "import dev", "dev.TICK_S = 0.01")
    program = "; ".join((*lines, "dev.call(sys.argv[2:], 'x', '')"))
    mark = tmp_path / "mark"
    command = [sys.executable, "-c", program, str(ROOT), "sh", "-c", f"until [ -e {mark} ]; do :; done"]
    with subprocess.Popen(command, stderr=follower) as process:
        os.close(follower)
        shown = b""
        while b"/" not in shown:
            shown += os.read(leader, 1024)
        mark.touch()
        while b"\033[K" not in shown:
            shown += os.read(leader, 1024)
        assert process.wait(60) == 0
    os.close(leader)
    assert re.match(rb"dev.py: x\r\n\r[|/\\-] \d+ s ", shown)


def test_an_interrupted_command_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    processes: list[subprocess.Popen[bytes]] = []

    def interrupt(process: subprocess.Popen[bytes], doing: str) -> None:
        processes.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(dev, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        dev.call(["sleep", "600"], "trying", "could not")
    assert processes[0].returncode == -signal.SIGKILL


# --- the locks


def pins(lock: str) -> dict[str, str]:
    """Returns a lock's packages and their versions."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    return dict(re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==([^\s;]+)", text, re.MULTILINE))


@pytest.mark.parametrize("lock", ["cpu", "tpu", "cuda13", "buckets", "otel", "compat", "deploy"])
def test_locks_agree_with_the_one_that_is_tested(lock: str) -> None:
    tested, locked = pins("dev"), pins(lock)
    assert {name: version for name, version in locked.items() if tested.get(name, version) != version} == {}


def test_the_dev_lock_holds_all_of_the_cpu_lock() -> None:
    assert pins("cpu").items() <= pins("dev").items()


def test_every_direct_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for lock, wanted in {
        "cpu": [],
        "dev": extras["dev"],
        "tpu": extras["tpu"],
        "cuda13": extras["cuda13"],
        "buckets": extras["buckets"],
        "otel": extras["otel"],
        "compat": extras["compat"],
    }.items():
        names = {re.split(r"[\[<>=;~! ]", each)[0].lower() for each in [*project["dependencies"], *wanted]}
        assert names <= pins(lock).keys(), f"requirements/{lock}.txt is stale: python3 dev.py lock"


@pytest.mark.parametrize("lock", [dev.UV, dev.DOCS, *dev.CLIENTS])
def test_every_client_is_locked(lock: str) -> None:
    lines = (ROOT / "requirements" / f"{lock}.in").read_text().splitlines()
    names = {re.split(r"[\[<>=]", line)[0] for line in lines if not line.startswith("#")}
    assert names <= pins(lock).keys(), f"requirements/{lock}.txt is stale: python3 dev.py lock"
    assert not {"torch", "jax"} & pins(lock).keys()


def test_clients_for_node_are_locked_by_hash_and_without_an_address() -> None:
    folder = ROOT / "tests" / "clients" / "node"
    wanted = json.loads((folder / "package.json").read_text())
    packages = json.loads((folder / "package-lock.json").read_text())["packages"]
    root = packages.pop("")
    assert root["dependencies"] == wanted["dependencies"]
    assert all(re.fullmatch(r"[\d.]+", version) for version in wanted["dependencies"].values())
    assert all("integrity" in package and "resolved" not in package for package in packages.values())


def test_what_builds_the_checkout_is_locked() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    text = (ROOT / "requirements" / "build.in").read_text()
    assert [line for line in text.splitlines() if not line.startswith("#")] == build
