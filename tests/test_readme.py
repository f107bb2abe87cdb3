"""The documentation's commands, run as a newcomer types them: in a clone, with the environment that `dev.py` makes.

Every command in a fenced `sh` block is run, unless `NOT_RUN` says why it is not. Python blocks and examples run in
environments that have only what their page installs. Nothing is downloaded: the packages are those of the environment
in which the tests run, and uv has kept them. Servers listen on ports that are free.
"""

import functools
import importlib.metadata
import importlib.util
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from doc_commands import Block, blocks, commands, installed, words
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ports import free_port

ROOT = Path(__file__).resolve().parents[1]

NOT_RUN = {
    "python3 dev.py test": "it is the tests themselves, or another group of them",
    "pip install '.[tpu]'": "downloads libtpu",
    "pip install '.[cuda13]'": "downloads CUDA's libraries",
    "pip install '.[otel]'": "downloads OpenTelemetry",
    "python3 -m venv": "makes the environment that dev.py has made",
    "python benchmarks/kernels.py": "takes minutes",
    "python tools/fleet/fleet.py": "takes minutes; tests/tools/fleet/test_fleet.py has its model",
    "ROOST_SLOTS=64 roost serve google/": "downloads weights, with an account",
    "roost serve --config": "wants the file that is shown below it; tests/server/settings/test_settings.py reads one",
    "roost serve --otlp": "wants a collector; tests/server/observability/test_tracing.py has one",
    "roost serve google/": "downloads weights, with an account",
    "roost serve kaggle:": "downloads weights, with an account",
    "roost serve gs://": "downloads weights, with an account",
    "roost serve s3://": "downloads weights, with an account",
    "roost serve random:2b": "takes 5 GiB and minutes",
    "roost plan random:2b --device v5e --verify": "takes minutes; tests/tpu/test_served_programs.py does most",
    "roost plan random:9b --device v5e --quantize int8 --verify": "takes minutes, as above",
    "roost plan random:2b --device l4 --verify": "takes minutes; tests/gpu/test_gpu_programs.py verifies a small model",
    "roost bench engine": "takes minutes; tests/server/commands/bench/test_bench_engine.py runs a small one",
    "roost convert SRC CALIBRATED": "takes minutes; tests/server/commands/test_cli.py calibrates for a short text",
    "roost report": "takes minutes; tests/e2e/test_report.py makes small ones",
    "pip download ": "downloads packages",
    "hf download ": "downloads weights, with an account",
    "pip install --no-index": "wants what pip has downloaded",
    "HF_HUB_OFFLINE=1 roost serve": "wants weights; tests/server/model_hub/test_huggingface.py serves from the cache",
    "python benchmarks/growth.py": "takes minutes; tests/e2e/test_bench.py runs a small one",
    "python examples/ray_data.py": "wants Ray; tests/e2e/test_compat_ray.py runs it",
    "python examples/lm_eval_model.py": "wants lm-eval and a task; tests/e2e/test_compat_lm_eval.py runs it",
    "OPENAI_API_KEY=none lm_eval": "wants lm-eval and a task; tests/e2e/test_compat_lm_eval.py runs one",
    "import dspy": "wants DSPy; tests/clients/test_dspy.py runs it",
    "docker ": "needs a container engine",
    "python examples/": "asks on port 8000; test_every_file_of_examples_runs runs all of them on another",
    "pip install openai anthropic": "downloads packages that the tests' environment has",
    "helm ": "needs a cluster",
    "kubectl ": "needs a cluster",
    "python3 -m sqlite3 ": "wants a file in /var/lib/roost; tests/e2e/test_backups.py has one",
    "sync /var/": "as above",
    "rm -f /var/": "as above",
    "install -m 600 /var/": "as above",
    "psql ": "wants a database; tests/e2e/test_backups.py has one",
    "pg_dump ": "as above",
    "createdb ": "as above",
    "pg_restore ": "as above",
}
"""Beginnings of commands, and why they are not run here."""

EXAMPLE_SUFFIXES = (".py", ".sh")

EXAMPLES_NOT_RUN = {
    "lm_eval_model.py": "wants lm-eval and a task; tests/e2e/test_compat_lm_eval.py runs it",
    "ray_data.py": "wants Ray; tests/e2e/test_compat_ray.py runs it",
}
"""Files of examples/ that are not run here, and why."""

CLONE = "git clone REPOSITORY roost && cd roost"
SERVE = "python3 dev.py serve"
SERVES = (SERVE, "roost serve")
FOR_THE_REST = "source "
"""Beginning of commands that change the shell for all that is typed after them."""

READY_WITHIN = 600.0


def reason_not_to_run(command: str) -> str | None:
    return next((reason for start, reason in NOT_RUN.items() if command.startswith(start)), None)


DOCUMENTS = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [block for document in DOCUMENTS for block in blocks(document.read_text())]
SHELL = [block for block in BLOCKS if block.language == "sh"]
SHOWN = [
    pair
    for name in ("README.md", "docs/index.md")
    for pair in itertools.pairwise(blocks((ROOT / name).read_text()))
    if [block.language for block in pair] == ["sh", "text"]
]
"""Commands, and the text below them that shows what they print; `…` stands for anything."""

PYTHON_SHOWN = {
    block: below
    for document in DOCUMENTS
    for block, below in itertools.pairwise(blocks(document.read_text()))
    if (block.language, below.language) == ("python", "text")
}
"""The same for programs."""

WRITTEN = ("docs", "benchmarks", "deploy", "examples", "configs")
PAGES = [*ROOT.glob("*.md"), *(path for folder in WRITTEN for path in (ROOT / folder).rglob("*.md"))]
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
"""A link, but no picture: its text and its target."""

EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.suffix in EXAMPLE_SUFFIXES)


# --- a newcomer's machine


@dataclass
class Newcomer:
    """A person with a clone, and a terminal in which environments stay active."""

    home: Path
    port: int
    typed: list[str] = field(default_factory=list)

    @property
    def clone(self) -> Path:
        return self.home / "roost"

    def environment(self, **more: str) -> dict[str, str]:
        """Returns variables without our own environment, and those that keep the network out.

        `home/bin` has uv.
        """
        folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if not shutil.which("roost", path=folder)]
        path = os.pathsep.join([str(self.home / "bin"), *folders])
        kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
        offline = {
            "UV_OFFLINE": "1",
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        small = {"ROOST_SLOTS": "4", "ROOST_PREFILL_CHUNK": "128", "ROOST_DRAIN_LAG": "0"}  # few programs to compile
        return {**kept, **offline, **small, "PATH": path, "CURL_HOME": str(self.home), **more}

    def script(self, command: str) -> str:
        return "\n".join(["set -eo pipefail", *self.typed, self.concrete(command)])

    def concrete(self, command: str) -> str:
        """Returns a command with README's placeholders filled in, and its ports replaced by that of the one server."""
        command = command.replace("git+REPOSITORY", shlex.quote(f"git+file://{ROOT}"))
        command = command.replace("REPOSITORY", shlex.quote(str(ROOT)))
        command = command.replace(":8000", f":{self.port}").replace(":8001", f":{self.port}")
        if command.startswith("roost bench serve"):  # its default is README's port
            command = command.replace("bench serve", f"bench serve --url http://127.0.0.1:{self.port}")
        return command

    def python(self, packages: tuple[str, ...]) -> Path:
        """Returns the interpreter of an environment that has packages and what they need, and nothing else.

        Args:
          packages: As in `Block`; none are those that `python3 dev.py serve` installs: Roost with a server's packages.
        """
        name = "-".join(packages).replace(".", "")
        environment = self.home / f"only-{name or 'roost'}"
        if not environment.exists():
            self.uv("venv", "--quiet", "--python", sys.executable, str(environment))
            if packages in ((), (".",)):
                self.uv_install(
                    environment, "--require-hashes", "--requirement", str(ROOT / "requirements" / "cpu.txt")
                )
                lend_roost(self.clone / ".venv", environment)
            else:
                self.uv_install(environment, *closure(packages))
        return environment / "bin" / "python"

    def uv_install(self, environment: Path, *wanted: str) -> None:
        self.uv("pip", "install", "--quiet", "--no-deps", "--python", str(environment / "bin" / "python"), *wanted)

    def uv(self, *arguments: str) -> None:
        """Runs uv, which takes packages from its cache: `dev.py` has brought them from the same index."""
        command, environment = [str(self.home / "bin" / "uv"), *arguments], {**uv_environment(), "UV_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr

    def typed_file(self, name: str, text: str) -> Path:
        """Writes a program into a folder from which Python finds no `roost` but the installed one; returns its path."""
        path = self.home / "programs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(self.concrete(text))
        return path

    def log(self, port: int) -> Path:
        return self.home / f"server-{port}.log"

    def type(self, command: str, folder: Path | None = None) -> str:
        """Runs a command to its end, which has to be good, and returns what it printed."""
        shell = ["bash", "-c", self.script(command)]
        done = subprocess.run(
            shell, cwd=folder or self.clone, env=self.environment(), capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if command.startswith(FOR_THE_REST):
            self.typed.append(command)
        return done.stdout

    @contextmanager
    def serving(self, command: str, port: int) -> Iterator[None]:
        """Starts a server, waits until it is ready, and ends it as Ctrl-C does."""
        log = self.log(port)
        lines = self.script(command).splitlines()
        shell = ["bash", "-c", "\n".join([*lines[:-1], f"exec {lines[-1]}"])]
        environment = self.environment(ROOST_PORT=str(port))
        with log.open("w") as output:
            process = subprocess.Popen(shell, cwd=self.clone, env=environment, stdout=output, stderr=output)
        try:
            wait_until_ready(process, port, log)
            yield
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=120) == 0, log.read_text()
            assert "Traceback" not in log.read_text(), log.read_text()
        finally:
            process.kill()
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=10):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"the server did not start:\n{log.read_text()}")


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    """Has cloned this repository, with what is not committed yet, and has two models where README's examples look."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("this is no git checkout, which could be cloned")
    if importlib.util.find_spec("ensurepip") is None:
        pytest.skip("this Python makes no environments with pip")
    uv = shutil.which("uv", path=os.pathsep.join([os.environ["PATH"], str(ROOT / ".venv-uv" / "bin")]))
    if uv is None:
        pytest.skip("there is no uv: python3 dev.py test brings it")
    person = Newcomer(tmp_path_factory.mktemp("home"), free_port())
    (person.home / "bin").mkdir()
    (person.home / "bin" / "uv").symlink_to(uv)
    (person.home / ".curlrc").write_text("fail-with-body\n")
    person.type(first(CLONE), person.home)
    bring_uncommitted(person.clone)
    lend_packages(person.clone / ".venv")
    examples = person.clone / "path" / "to"
    examples.mkdir(parents=True)
    (examples / "recurrentgemma-2b-it").symlink_to(person.clone / "configs" / "demo")
    (person.clone / "SRC").symlink_to(person.clone / "configs" / "demo")
    shutil.copy(person.clone / "configs" / "demo" / "config.json", examples)
    return person


def first(start: str) -> str:
    """Returns the first command that begins so; README is the first document."""
    return next(one for block in SHELL for one in commands(block.text) if one.startswith(start))


def bring_uncommitted(clone: Path) -> None:
    """Makes a clone what the checkout is: files may have been changed, added or deleted since the last commit."""
    listed = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = listed(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]).stdout.split("\0")
    for name in filter(None, tracked):
        target = clone / name
        if (ROOT / name).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
        else:
            target.unlink(missing_ok=True)


def lend_packages(environment: Path) -> None:
    """Makes an environment that sees the packages of ours, but not our Roost, so that nothing is downloaded: uv and pip
    find their metadata, and Python finds their modules in our environment."""
    venv.create(environment, with_pip=True)
    ours = Path(sysconfig.get_path("purelib"))
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    (packages / "lent.pth").write_text(f"{ours}\n")
    for metadata in ours.glob("*.dist-info"):
        if not metadata.name.startswith(("roost-", "pip-")):
            shutil.copytree(metadata, packages / metadata.name)
    (environment / "roost-stamp").write_text("lent")


def uv_environment() -> dict[str, str]:
    """Returns the variables with which `dev.py` runs uv, since its cache is separate for each index."""
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    assert spec is not None
    assert spec.loader is not None
    dev = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dev)
    environment: dict[str, str] = dev.tool_environment()
    return environment


def lend_roost(lender: Path, environment: Path) -> None:
    """Gives an environment the Roost that another one has: from a clone, or copied there by `pip install .`."""
    source, target = lender / sites_of(lender), environment / sites_of(environment)
    (roost,) = importlib.metadata.distributions(name="roost", path=[str(source)])
    for file in roost.files or ():
        if ".." not in file.parts:  # a command lies outside, and names its environment's interpreter
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / file, target / file)


def sites_of(environment: Path) -> Path:
    """Returns the folder of an environment's packages, relative to it."""
    base = {"base": str(environment), "platbase": str(environment)}
    return Path(sysconfig.get_path("purelib", vars=base)).relative_to(environment)


def closure(packages: tuple[str, ...]) -> list[str]:
    """Returns packages and all that they need, in the versions of the environment in which the tests run."""
    versions, left = dict[str, str](), list(packages)
    while left:
        package = canonicalize_name(left.pop())
        if package in versions:
            continue
        distribution = importlib.metadata.distribution(package)
        versions[package] = distribution.version
        needs = map(Requirement, distribution.requires or ())
        left += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return [f"{package}=={version}" for package, version in versions.items()]


@pytest.fixture(scope="module")
def server(newcomer: Newcomer) -> Iterator[None]:
    """The demo model's, as README starts it first; it installs Roost, too."""
    with newcomer.serving(first(SERVE), newcomer.port):
        yield


# --- the commands


@pytest.mark.readme
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("block", SHELL, ids=[f"{number} {block.section}" for number, block in enumerate(SHELL)])
def test_every_command_runs_or_has_a_reason_not_to(newcomer: Newcomer, block: Block) -> None:
    """Blocks follow on each other, as README's reader does: the second activates what the first installed."""
    for command in commands(block.text):
        if reason_not_to_run(command) or command.startswith((CLONE, SERVE)):  # which the fixtures have run
            continue
        missing = [tool for tool in ("curl", "jq") if tool in words(command) and not shutil.which(tool)]
        if missing:
            pytest.skip(f"{missing[0]} is not installed")
        if command.startswith(SERVES):
            with newcomer.serving(command, free_port()):
                pass
        else:
            assert newcomer.type(command).strip() or words(command)[0] != "curl", command


@pytest.mark.readme
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.language == "python" and not reason_not_to_run(block.text)],
    ids=lambda b: b.section,
)
def test_every_python_example_runs(newcomer: Newcomer, block: Block) -> None:
    example = newcomer.typed_file("example.py", block.text)
    printed = newcomer.type(f"{newcomer.python(block.packages)} {example}")
    assert printed.strip()
    if block in PYTHON_SHOWN:
        assert not_printed(newcomer, PYTHON_SHOWN[block], printed) == [], printed


@pytest.mark.readme
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    "path", [path for path in EXAMPLES if path.name not in EXAMPLES_NOT_RUN], ids=lambda path: path.name
)
def test_every_file_of_examples_runs(newcomer: Newcomer, path: Path) -> None:
    copy = newcomer.typed_file(path.name, path.read_text())
    program = newcomer.python(installed((ROOT / "examples" / "README.md").read_text()))
    assert newcomer.type(f"{'bash' if path.suffix == '.sh' else program} {copy}").strip()


@pytest.mark.readme
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(("block", "shown"), SHOWN, ids=lambda each: each.language)
def test_readme_shows_what_its_commands_print(newcomer: Newcomer, block: Block, shown: Block) -> None:
    command = commands(block.text)[-1]
    printed = newcomer.log(newcomer.port).read_text() if command.startswith(SERVE) else newcomer.type(command)
    assert not_printed(newcomer, shown, printed) == [], printed


def not_printed(newcomer: Newcomer, shown: Block, printed: str) -> list[str]:
    """Returns the lines of a shown text, as patterns, that nothing printed has."""
    lines = [newcomer.concrete(line) for line in shown.text.splitlines()]
    patterns = [".*".join(map(re.escape, line.split("…"))) for line in lines]
    return [pattern for pattern in patterns if not re.search(pattern, printed)]


def test_pages_show_what_their_programs_print() -> None:
    tutorial = blocks((ROOT / "docs" / "tutorials" / "python.md").read_text())
    tools = blocks((ROOT / "docs" / "how-to" / "tools.md").read_text())
    programs = [block for block in (*tutorial, *tools) if block.language == "python"]
    assert len(programs) > 7
    assert [block for block in programs if block not in PYTHON_SHOWN] == []


# --- the pages


def test_readme_begins_with_a_sentence_a_picture_and_a_short_list() -> None:
    first, rest = re.split(r"^(?=<picture>|```)", (ROOT / "README.md").read_text(), maxsplit=1, flags=re.MULTILINE)
    assert len(first.split()) <= 25
    assert rest.startswith("<picture>")
    assert len(LINK.findall(rest.partition("## Documentation\n")[2].partition("\n## ")[0])) <= 8


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", LINK.sub(r"\1", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Yields the files and anchors that a page links to."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for _, target in LINK.findall(text):
        path, _, anchor = target.partition("#")
        if "://" not in target:
            yield (page.parent / path).resolve() if path else page, anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}#{anchor}"
        for path, anchor in links(page)
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path))
    ]
    assert wrong == []


def test_every_page_that_a_file_names_exists() -> None:
    rooms = ("server", "engine", "kernels", "deploy", "tools", "benchmarks", "examples", "tests", ".github")
    files = [path for room in rooms for path in (ROOT / room).rglob("*") if path.suffix in (".py", ".yaml", ".service")]
    named = re.compile(r"\b(?:docs|benchmarks)/[\w/-]+\.md\b")
    names = {name for path in (*files, *PAGES) for name in named.findall(path.read_text())}
    assert len(names) > 20
    assert [name for name in names if not (ROOT / name).is_file()] == []


def test_every_page_is_two_links_from_readme() -> None:
    near = {path for path, _ in links(ROOT / "README.md")}
    far = {path for page in near if page.suffix == ".md" for path, _ in links(page)}
    pages = {
        page for page in PAGES if page.parents[1] != ROOT / "configs"
    }  # which has notices, beside what they are about
    assert pages - near - far == {ROOT / "README.md"}


def test_every_example_is_listed_and_every_reason_is_about_one() -> None:
    listed = re.findall(r"^\| \[([\w.]+)\]\(\1\) \|", (ROOT / "examples" / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == [path.name for path in EXAMPLES]
    assert EXAMPLES_NOT_RUN.keys() <= set(listed)


def test_every_reason_is_about_a_command() -> None:
    every = [command for block in SHELL for command in commands(block.text)]
    every += [block.text for block in BLOCKS if block.language == "python"]
    assert [start for start in NOT_RUN if not any(command.startswith(start) for command in every)] == []


def test_which_packages_a_page_installs_before_a_block() -> None:
    installs = "`pip install openai anthropic`\n```python\n2\n```\npip install '.[tpu]' `pip install .`\n"
    text = f"# A\n```python\n1\n```\n{installs}"
    assert [block.packages for block in blocks(text)] == [(), ("openai", "anthropic")]
    assert installed(text) == (".",)


def test_what_a_block_is_split_into() -> None:
    block = "one a   # it's a comment\n\n# no command\ntwo -d '{\n  1\n}'\nthree \\\n  b\nx=$(four |\n  five)\nsix $x\n"
    assert commands(block) == [
        "one a   # it's a comment",
        "two -d '{\n  1\n}'",
        "three \\\n  b",
        "x=$(four |\n  five)\nsix $x",
    ]


def test_extras_are_named_as_a_clone_installs_them() -> None:
    """Roost is on no package index, so that `pip install 'roost[otel]'` finds nothing, or somebody else's package."""
    folders = [ROOT / name for name in ("server", "engine", "kernels", "docs", "deploy", "benchmarks")]
    files = [ROOT / "README.md", *(path for folder in folders for path in folder.rglob("*") if path.is_file())]
    texts = {path: path.read_text() for path in files if path.suffix in (".py", ".md", ".yaml", ".json", ".html")}
    wrong = re.compile(r"\broost\\*\[[a-z{]|pip install '?roost\b")
    assert [str(path) for path, text in texts.items() if wrong.search(text)] == []
