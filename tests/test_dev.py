"""dev.py: which Python it picks, when it installs, what it says when it cannot. Nothing is installed here."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load_dev():
    """Imports dev.py, which is no part of any package."""
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dev = load_dev()


# --- which Python


def script(path: Path, text: str) -> str:
    """Writes a shell script that poses as a Python, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_python_that_runs_tells_its_version() -> None:
    found = dev.probe(sys.executable)
    assert found.path == sys.executable
    assert found.version == sys.version_info[:2]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("echo 'pyenv: not found' >&2; exit 127", id="a shim for a version that is not there"),
        pytest.param("echo hello", id="something else under this name"),
        pytest.param("kill -9 $$", id="crashes"),
    ],
)
def test_a_python_that_does_not_run_is_none(tmp_path: Path, text: str) -> None:
    assert dev.probe(script(tmp_path / "python3.12", text)) is None


def test_a_missing_python_is_none(tmp_path: Path) -> None:
    assert dev.probe(str(tmp_path / "python3.12")) is None


def test_shims_and_old_pythons_are_passed_over(tmp_path: Path) -> None:
    script(tmp_path / "shims" / "python3.13", "exit 127")
    script(tmp_path / "old" / "python3", "echo 3 11 1")
    good = script(tmp_path / "good" / "python3.12", "echo 3 12 1")
    found = dev.find_interpreter([str(tmp_path / name) for name in ("shims", "old", "good")])
    assert found == (good, (3, 12), True)


def test_the_tested_version_wins_over_an_earlier_folder(tmp_path: Path) -> None:
    script(tmp_path / "a" / "python3.12", "echo 3 12 1")
    best = script(tmp_path / "b" / f"python{dev.VERSIONS[0]}", "echo 3 13 1")
    assert dev.find_interpreter([str(tmp_path / "a"), str(tmp_path / "b")]).path == best


def test_a_python_that_makes_environments_wins_over_one_that_does_not(tmp_path: Path) -> None:
    script(tmp_path / "python3.13", "echo 3 13 0")
    whole = script(tmp_path / "python3.12", "echo 3 12 1")
    assert dev.find_interpreter([str(tmp_path)]).path == whole


def test_no_python_is_explained(tmp_path: Path) -> None:
    script(tmp_path / "python3", "echo 3 11 1")
    with pytest.raises(dev.Problem, match=r"no Python 3\.12 or later here\. Install one"):
        dev.able(dev.find_interpreter([str(tmp_path)]))


def test_a_missing_venv_module_is_explained(tmp_path: Path) -> None:
    script(tmp_path / "python3", "echo 3 13 0")
    with pytest.raises(dev.Problem, match=r"has no venv module.*apt-get install python3\.13-venv"):
        dev.able(dev.find_interpreter([str(tmp_path)]))


def test_path_comes_before_the_system_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/first::/usr/bin")
    folders = dev.search_folders()
    assert folders[:2] == ["/first", "/usr/bin"]
    assert len(folders) == len(set(folders))


# --- when it installs


class Commands(list[list[str]]):
    """Stands in for dev.call: notes each command; making an environment leaves a Python there."""

    def __init__(self, venv: Path) -> None:
        self.venv = venv
        self.fail_at = ""

    def __call__(self, command: list[str], failed: str) -> None:
        self.append(command)
        if self.fail_at and self.fail_at in command:
            raise dev.Problem(failed)
        if "venv" in command:
            script(self.venv / "bin" / "python", "echo 3 13 1")

    def made_venvs(self) -> int:
        return sum("venv" in command for command in self)

    def locks(self) -> list[str]:
        return [Path(word).stem for command in self for word in command if word.endswith(".txt")]


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with locks and no environment yet; returns where the environment goes."""
    (tmp_path / "requirements").mkdir()
    for lock in ("cpu", "dev"):
        (tmp_path / "requirements" / f"{lock}.txt").write_text(f"{lock}==1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    script(tmp_path / "system" / "python3.13", "echo 3 13 1")
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    monkeypatch.setattr(dev, "search_folders", lambda: [str(tmp_path / "system")])
    monkeypatch.setattr(dev.shutil, "which", lambda _: None)
    return tmp_path / ".venv"


@pytest.fixture
def commands(venv: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """The commands that dev.py would have run."""
    noted = Commands(venv)
    monkeypatch.setattr(dev, "call", noted)
    return noted


def test_first_run_makes_the_environment_and_installs(venv: Path, commands: Commands) -> None:
    assert dev.prepare(venv, ("cpu",)) == venv / "bin" / "python"
    make, packages, checkout = commands
    assert make[1:3] == ["-m", "venv"]
    assert "--require-hashes" in packages
    assert {"--no-deps", "--no-build-isolation", "--editable"} < set(checkout)


def test_second_run_does_nothing(venv: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    dev.prepare(venv, ("cpu",))
    commands.clear()
    monkeypatch.setattr(dev, "probe", lambda path: pytest.fail(f"ran {path}"))
    dev.prepare(venv, ("cpu",))
    assert commands == []


@pytest.mark.parametrize("changed", ["requirements/cpu.txt", "pyproject.toml"])
def test_a_changed_file_installs_again_in_place(venv: Path, commands: Commands, changed: str) -> None:
    dev.prepare(venv, ("cpu",))
    commands.clear()
    (dev.ROOT / changed).write_text("changed\n")
    dev.prepare(venv, ("cpu",))
    assert commands.locks() == ["cpu"]
    assert commands.made_venvs() == 0


def test_every_source_of_the_native_kernels_counts() -> None:
    native = ROOT / "kernels/native"
    assert set(dev.NATIVE) == {native / "build.py", *(native / "csrc").iterdir()}


def test_a_moved_checkout_installs_again(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dev.fingerprint(("cpu",))
    monkeypatch.setattr(dev, "ROOT", dev.ROOT / "requirements" / "..")
    assert dev.fingerprint(("cpu",)) != before


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


def test_clients_for_node_that_were_not_installed_are_tried_again(node_clients: Path, commands: Commands) -> None:
    commands.fail_at = "ci"
    with pytest.raises(dev.Problem, match="could not install the clients for Node"):
        dev.install_node_clients(node_clients)
    commands.fail_at = ""
    dev.install_node_clients(node_clients)
    assert len(commands) == 2


def test_without_npm_the_clients_for_node_are_left_out(
    node_clients: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dev.shutil, "which", lambda _: None)
    dev.install_node_clients(node_clients)
    assert commands == []
    assert "no npm" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("statuses", "status"),
    [([0, 0], 0), ([0, 5], 0), ([5, 0], 0), ([5, 5], 5), ([1, 0], 1), ([0, 1], 1), ([5, 2], 2)],
)
def test_clients_fail_where_either_environment_does(
    monkeypatch: pytest.MonkeyPatch, statuses: list[int], status: int
) -> None:
    runs: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        runs.append(command)
        return subprocess.CompletedProcess(command, statuses[len(runs) - 1])

    monkeypatch.setattr(dev, "prepare", lambda venv, locks, checkout: venv / "bin" / "python")
    monkeypatch.setattr(dev, "install_node_clients", lambda folder: None)
    monkeypatch.setattr(dev.subprocess, "run", run)
    assert dev.test_clients(Path("python"), ["-k", "chat"]) == status
    assert [Path(command[0]).parents[1].name for command in runs] == [".venv-clients", ".venv-clients-openai2"]
    assert all(command[-2:] == ["-k", "chat"] for command in runs)


def test_the_test_environment_serves_too_but_not_the_other_way(venv: Path, commands: Commands) -> None:
    dev.prepare(venv, ("cpu",))
    dev.prepare(venv, ("dev",))
    dev.prepare(venv, ("cpu",))
    assert commands.locks() == ["cpu", "dev"]


def test_an_interrupted_installation_starts_over(venv: Path, commands: Commands) -> None:
    commands.fail_at = "--require-hashes"
    with pytest.raises(dev.Problem, match=r"could not install requirements/cpu\.txt"):
        dev.prepare(venv, ("cpu",))
    commands.fail_at = ""
    dev.prepare(venv, ("cpu",))
    assert commands.made_venvs() == 2
    assert dev.is_current(venv, ("cpu",))


def test_a_half_made_environment_is_repaired(venv: Path, commands: Commands) -> None:
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(venv / "gone")
    dev.prepare(venv, ("cpu",))
    assert commands.made_venvs() == 1


def test_an_environment_whose_python_is_gone_is_not_current(venv: Path, commands: Commands) -> None:
    dev.prepare(venv, ("cpu",))
    (venv / "bin" / "python").unlink()
    assert not dev.is_current(venv, ("cpu",))


def test_an_environment_without_pip_is_remade_unless_there_is_uv(venv: Path) -> None:
    script(venv / "bin" / "python", 'case "$*" in *"import pip"*) exit 1;; *) echo 3 13 1;; esac')
    assert not dev.is_usable(venv, uv=None)
    assert dev.is_usable(venv, uv="uv")


def test_an_environment_of_an_older_python_is_remade(venv: Path) -> None:
    script(venv / "bin" / "python", "echo 3 11 1")
    assert not dev.is_usable(venv, uv="uv")


def test_uv_is_used_where_it_is(venv: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev.shutil, "which", lambda _: "uv")
    dev.prepare(venv, ("cpu",))
    assert [command[:2] for command in commands] == [["uv", "venv"], ["uv", "pip"], ["uv", "pip"]]


def test_uv_brings_a_python(venv: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev, "search_folders", list)
    dev.make_venv(venv, "uv")
    assert dev.VERSIONS[0] in commands[0]


# --- what it says


def run_dev(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs dev.py as a user does."""
    return subprocess.run([sys.executable, str(ROOT / "dev.py"), *arguments], capture_output=True, text=True)


def test_without_a_job_it_lists_them() -> None:
    answer = run_dev()
    assert answer.returncode == 2
    assert all(re.search(rf"^  {job} ", answer.stdout, re.MULTILINE) for job in dev.JOBS)
    assert run_dev("--help").returncode == 0


@pytest.mark.usefixtures("venv")
def test_a_problem_is_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(dev, "search_folders", list)
    assert dev.main(["serve"]) == 1
    assert capfd.readouterr().err.splitlines() == [
        "dev.py: no Python 3.12 or later here. Install one from your system or python.org, "
        "or install uv (https://docs.astral.sh/uv), which brings its own"
    ]


def test_a_failing_tool_is_a_problem(venv: Path) -> None:
    with pytest.raises(dev.Problem, match="could not"):
        dev.call(["false"], "could not")


def test_a_long_command_says_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The command goes on until a line was written."""
    monkeypatch.setattr(dev, "LINE_EVERY_S", 0.01)
    mark = tmp_path / "mark"
    monkeypatch.setattr(dev, "say", lambda text: (mark.touch(), print(f"dev.py: {text}", file=sys.stderr)))
    dev.call(["sh", "-c", f"until [ -e {mark} ]; do :; done"], "could not")
    assert re.match(r"dev\.py: still at it after \d+ s\n", capfd.readouterr().err)


def test_on_a_terminal_a_clock_moves(tmp_path: Path) -> None:
    """And is wiped away at the end."""
    leader, follower = os.openpty()
    program = "import sys; sys.path.insert(0, sys.argv[1]); import dev; dev.TICK_S = 0.01; dev.call(sys.argv[2:], '')"
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
    assert re.match(rb"\r[|/\\-] 0 s ", shown)


def test_an_interrupted_command_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    processes: list[subprocess.Popen[bytes]] = []

    def interrupt(process: subprocess.Popen[bytes]) -> None:
        processes.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(dev, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        dev.call(["sleep", "600"], "could not")
    assert processes[0].returncode == -signal.SIGKILL


# --- the locks


def pins(lock: str) -> dict[str, str]:
    """Returns a lock's packages and their versions."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    return dict(re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==([^\s;]+)", text, re.MULTILINE))


@pytest.mark.parametrize("lock", ["cpu", "tpu", "cuda13", "gcs", "otel", "compat", "deploy"])
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
        "gcs": extras["gcs"],
        "otel": extras["otel"],
        "compat": extras["compat"],
    }.items():
        names = {re.split(r"[\[<>=;~! ]", each)[0].lower() for each in [*project["dependencies"], *wanted]}
        assert names <= pins(lock).keys(), f"requirements/{lock}.txt is stale: python3 dev.py lock"


@pytest.mark.parametrize("lock", [dev.DOCS, *dev.CLIENTS])
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
