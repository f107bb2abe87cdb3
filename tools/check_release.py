"""Installs the wheels of dist/ as a user does and serves the demo model from them: `python3 dev.py release`.

Each Python gets an environment outside the checkout; pip takes the dependencies from the index, and wheels only.
No compiler is on PATH. The first Python tries every wheel, the others the one that pip chooses for them.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DIST: Final = Path(__file__).resolve().parents[1] / "dist"
START_WITHIN_S: Final = 300.0
QUESTION: Final = {"temperature": 0, "messages": [{"role": "user", "content": "What is the capital of Spain?"}]}
NATIVE: Final = "from roost.kernels import native; print(native.why_unavailable() or 'usable')"
CHAT: Final = """\
from roost import LLM, SamplingParams
question = [{"role": "user", "content": "What is the capital of Spain?"}]
(output,) = LLM("demo").chat(question, SamplingParams(temperature=0))
print(output.outputs[0].text)
"""
NOT_IN_THE_WHEEL: Final = "this installation has none"
"""Beginning of the reason that `why_unavailable` gives for a wheel without native kernels."""


class CheckError(Exception):
    """An installed wheel does not do what it should; the text says which and how."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment outside the checkout, used without a compiler or any other program on PATH."""

    home: Path

    @property
    def python(self) -> Path:
        """Returns its interpreter."""
        return self.home / "venv" / "bin" / "python"

    def variables(self) -> dict[str, str]:
        """Returns the variables of its processes, whose PATH has nothing but the environment's programs."""
        others = ("PYTHONPATH", "VIRTUAL_ENV", "CC", "CXX")
        kept = {name: value for name, value in os.environ.items() if name not in others}
        return {**kept, "PATH": str(self.python.parent)}

    def roost_variables(self) -> dict[str, str]:
        """Returns the variables of Roost's processes, which find no caches of earlier ones."""
        return {**self.variables(), "XDG_CACHE_HOME": str(self.home / "cache")}

    def run(self, program: str, *arguments: str | Path) -> str:
        """Runs a program of the environment and returns what it printed.

        Raises:
          CheckError: The program failed.
        """
        command = [str(self.python.with_name(program)), *map(str, arguments)]
        variables = self.variables() if "pip" in command else self.roost_variables()
        done = subprocess.run(command, cwd=self.home, env=variables, capture_output=True, text=True)
        if done.returncode != 0:
            raise CheckError(f"`{' '.join(command)}` failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def pip(self, *arguments: str | Path) -> str:
        """Runs pip, with the user's cache of downloads."""
        return self.run("python", "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def make_environment(python: str, home: Path) -> Environment:
    """Makes an environment with pip in a folder."""
    subprocess.run([python, "-m", "venv", str(home / "venv")], check=True)
    return Environment(home)


def chosen_wheel(environment: Environment, folder: Path, version: str) -> Path:
    """Returns the wheel of a folder that pip chooses in an environment."""
    with tempfile.TemporaryDirectory() as taken:
        only = ("--no-index", "--no-deps", "--only-binary=:all:", "--find-links", folder)
        environment.pip("download", *only, "--dest", taken, f"roost=={version}")
        return folder / next(Path(taken).iterdir()).name


# --- what an installation must do


def check(environment: Environment, wheel: Path, version: str) -> str:
    """Checks an installed wheel and returns a line of what was seen.

    Raises:
      CheckError: Something is not as it should be.
    """
    expect(version in environment.run("roost", "--version"), wheel, f"`roost --version` does not print {version}")
    native = environment.run("python", "-P", "-c", NATIVE).strip()
    expect((NOT_IN_THE_WHEEL in native) == wheel.name.endswith("-any.whl"), wheel, f"native kernels: {native}")
    expect("slots" in environment.run("roost", "plan", "random:2b", "--device", "v5e"), wheel, "`roost plan` is silent")
    expect("Madrid" in environment.run("python", "-P", "-c", CHAT), wheel, "`LLM` does not answer")
    with serving(environment) as address:
        expect("<!doctype html>" in ask(f"{address}/").lower(), wheel, "the chat page is missing")
        message = json.loads(ask(f"{address}/v1/chat/completions", QUESTION))["choices"][0]["message"]["content"]
    expect("Madrid" in message, wheel, f"the demo model answers {message!r}")
    return f"the demo model says {message!r}; native kernels: {native}"


def expect(holds: bool, wheel: Path, otherwise: str) -> None:
    """Raises an error about a wheel unless something holds."""
    if not holds:
        raise CheckError(f"{wheel.name}: {otherwise}")


def ask(url: str, body: object = None) -> str:
    """Returns the response to a GET, or to a POST of JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return str(response.read().decode())


@contextmanager
def serving(environment: Environment) -> Iterator[str]:
    """Yields the address of a server of the demo model, and checks that SIGTERM ends it with status 0."""
    log = environment.home / "server.log"
    command = [str(environment.python.with_name("roost")), "serve", "demo", "--port", "0"]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=environment.home, env=environment.roost_variables(), stdout=output, stderr=output
        )
    try:
        yield address_of(process, log)
        process.send_signal(signal.SIGTERM)
        if process.wait(60) != 0:
            raise CheckError(f"`roost serve demo` ended with status {process.returncode}:\n{log.read_text()}")
    finally:
        process.kill()
        process.wait()


def address_of(process: subprocess.Popen[bytes], log: Path) -> str:
    """Waits until a server prints its address."""
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"^address +(https?://\S+)/v1$", log.read_text(), re.MULTILINE):
            return found[1]
        time.sleep(0.1)
    raise CheckError(f"`roost serve demo` did not start:\n{log.read_text()}")


def main(arguments: Sequence[str]) -> int:
    """Checks the wheels of a folder on every Python that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", required=True, help="an interpreter to try; once for each")
    options = parser.parse_args(arguments)
    wheels = sorted(DIST.glob("*.whl"))
    if not wheels:
        raise CheckError(f"{DIST} has no wheels: run `python3 dev.py release`")
    version = wheels[0].name.split("-")[1]
    for number, python in enumerate(options.python):
        with tempfile.TemporaryDirectory() as home:
            environment = make_environment(python, Path(home))
            chosen = chosen_wheel(environment, DIST, version)
            others = [wheel for wheel in wheels if wheel != chosen] if number == 0 else []
            environment.pip("install", "--only-binary=:all:", chosen)  # and its dependencies from the index
            environment.pip("check")
            print(f"{python}: {chosen.name}: {check(environment, chosen, version)}", flush=True)
            for wheel in others:
                environment.pip("install", "--no-deps", "--force-reinstall", wheel)
                print(f"{python}: {wheel.name}: {check(environment, wheel, version)}", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CheckError as error:
        sys.exit(str(error))
