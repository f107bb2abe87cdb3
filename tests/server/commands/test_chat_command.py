"""`roost chat`: as a process on a pseudo-terminal and in pipes, against scripted servers; and its conversation."""

import asyncio
import contextlib
import os
import pty
import stat
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from roost.server.commands.chat import ChatTurn, LoadedState, Reply, Session, read_message
from roost.server.commands.main import app
from roost.server.terminal.exits import CommandError
from scripted_server import HEAD, chunk, error, event, scripted
from typer.testing import CliRunner

HANG_S = 60.0

MODELS = b'{"data":[{"id":"parrot"}]}'


def delta(text: str, finish: str | None = None) -> bytes:
    return event(orjson.dumps({"choices": [{"delta": {"content": text}, "finish_reason": finish}]}))


def stream(*events: bytes) -> bytes:
    return HEAD + b"".join(chunk(each) for each in events) + b"0\r\n\r\n"


def json_answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@dataclass
class Parrot:
    """Responds to `/v1/models`, and to each chat with its next response, repeating the last one.

    Attributes:
      hangs: whether a chat's answer is followed by nothing, not even an end.
      hung_up: set when a client leaves such an answer.
      bodies: of the chats.
      heads: of all requests.
    """

    answers: Sequence[bytes] = (stream(delta("Hel"), delta("lo!", "stop"), event(b"[DONE]")),)
    hangs: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                if head.startswith(b"GET /v1/models"):
                    writer.write(json_answer(MODELS))
                    continue
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                self.bodies.append(orjson.loads(await reader.readexactly(length)))
                answer = self.answers[min(len(self.bodies), len(self.answers)) - 1]
                if self.hangs and len(self.bodies) == 1:
                    writer.write(answer.removesuffix(b"0\r\n\r\n"))
                    await reader.read()
                    self.hung_up.set()
                    return
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def texts(self, index: int) -> list[str]:
        """Returns the messages of a chat request."""
        return [each["content"] for each in self.bodies[index]["messages"]]


@asynccontextmanager
async def serving(parrot: Parrot) -> AsyncIterator[str]:
    async with scripted(parrot) as address:  # type: ignore[arg-type]
        yield f"http://{address.authority}"


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "HOME": str(folder), "XDG_STATE_HOME": str(folder / "state"), "TERM": "xterm", **more}


COMMAND = (sys.executable, "-P", "-m", "roost.server", "chat")


_ON_TERMINAL = (
    sys.executable,
    "-c",
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])",
)
"""Takes stdin for the controlling terminal, so that Ctrl-C becomes a signal, and becomes another program."""


@contextmanager
def serving_beside(parrot: Parrot) -> Iterator[str]:
    """Serves on a thread, for a chat whose event loop is the main thread's."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = serving(parrot)
    try:
        yield asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result()
        asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def piped(folder: Path, url: str, text: bytes, *arguments: str, **more: str) -> tuple[int, bytes, bytes]:
    """The exit status, stdout and stderr of a chat in this process, whose stdin and stdout are pipes."""
    words, env = ["chat", "--url", url, *arguments], environment(folder, **more)
    ended = CliRunner().invoke(app, words, input=text, env=env)
    return ended.exit_code, ended.stdout_bytes, ended.stderr_bytes


async def piped_process(folder: Path, url: str, text: bytes, **more: str) -> tuple[int, bytes, bytes]:
    """The same of a separate process."""
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "--url", url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(folder, **more),
    )
    async with asyncio.timeout(HANG_S):
        out, err = await process.communicate(text)
    assert process.returncode is not None
    return process.returncode, out, err


def is_asleep(pid: int) -> bool:
    """Returns whether a process waits for something, by Linux's `/proc`; True where there is none."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].startswith(" S")


class Terminal:
    """A process on a pseudo-terminal, of 80 columns."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        self._process = process
        self._master = master
        self._shown = b""
        self._more = asyncio.Event()
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # the other end is closed
            piece = b""
        if not piece:
            asyncio.get_running_loop().remove_reader(self._master)
        self._shown += piece
        self._more.set()

    async def sees(self, text: str) -> str:
        """Waits until the text is shown; gives what was shown up to its end, and forgets it."""
        async with asyncio.timeout(HANG_S):
            while text.encode() not in self._shown:
                self._more.clear()
                await self._more.wait()
        before, _, self._shown = self._shown.partition(text.encode())
        return (before + text.encode()).decode()

    async def waits(self) -> None:
        """Returns when the program sleeps in readline: CPython does not wake for a signal that comes just before."""
        async with asyncio.timeout(HANG_S):
            while not is_asleep(self._process.pid):
                await asyncio.sleep(0.005)

    def types(self, text: str) -> None:
        os.write(self._master, text.encode())

    async def ends(self) -> int:
        async with asyncio.timeout(HANG_S):
            return await self._process.wait()


@asynccontextmanager
async def terminal(folder: Path, url: str, *arguments: str) -> AsyncIterator[Terminal]:
    master, slave = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *_ON_TERMINAL,
        *COMMAND,
        "--url",
        url,
        *arguments,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment(folder, COLUMNS="80"),
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        asyncio.get_running_loop().remove_reader(master)
        os.close(master)


PROMPT = ">>> "


async def test_a_conversation_on_a_terminal(tmp_path: Path) -> None:
    parrot = Parrot()
    async with serving(parrot) as url, terminal(tmp_path, url, "--system", "Be brief.") as user:
        shown = await user.sees(PROMPT)
        assert f"parrot on {url}: /help" in shown
        user.types("hi\n")
        assert "Hello!\r\n" in await user.sees(PROMPT)
        user.types('"""one\ntwo"""\n')
        assert "Hello!\r\n" in await user.sees(PROMPT)
        user.types("/retry\n")
        await user.sees(PROMPT)
        user.types("/reset\n")
        await user.sees(PROMPT)
        user.types("/system\n")
        await user.sees(PROMPT)
        user.types("again\n")
        await user.sees(PROMPT)
        user.types("/nonsense\n")
        assert "roost: /nonsense is no command" in await user.sees(PROMPT)
        user.types("\x04")
        assert await user.ends() == 0
    assert parrot.texts(0) == ["Be brief.", "hi"]
    assert parrot.texts(1) == parrot.texts(2) == ["Be brief.", "hi", "Hello!", "one\ntwo"]
    assert parrot.texts(3) == ["again"]


async def test_ctrl_c_stops_the_response_and_ctrl_d_leaves(tmp_path: Path) -> None:
    """The connection ends, and the text so far stays in the conversation."""
    parrot = Parrot(hangs=True)
    async with serving(parrot) as url, terminal(tmp_path, url) as user:
        await user.sees(PROMPT)
        user.types("hi\n")
        await user.sees("lo!")
        user.types("\x03")
        assert "(stopped)" in await user.sees(PROMPT)
        async with asyncio.timeout(HANG_S):
            await parrot.hung_up.wait()
        user.types("half a line")
        await user.sees("half a line")
        await user.waits()
        user.types("\x03")
        assert "(Ctrl-D leaves)" in await user.sees(PROMPT)
        await user.waits()
        user.types("go on\n")
        await user.sees(PROMPT)
        user.types("\x04")
        assert await user.ends() == 0
    assert parrot.texts(1) == ["hi", "Hello!", "go on"]


async def test_the_arrow_key_recalls_a_message_of_an_earlier_chat(tmp_path: Path) -> None:
    parrot = Parrot()
    async with serving(parrot) as url:
        for keys in ("a secret\n", "\x1b[A\n"):
            async with terminal(tmp_path, url) as user:
                await user.sees(PROMPT)
                user.types(keys)
                await user.sees(PROMPT)
                user.types("\x04")
                assert await user.ends() == 0
    assert [body["messages"][-1]["content"] for body in parrot.bodies] == ["a secret", "a secret"]
    (history,) = (tmp_path / "state").rglob("chat_history")
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert history.read_text() == "a secret\n"


async def test_a_history_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    history = tmp_path / "state" / "roost" / "chat_history"
    history.parent.mkdir(parents=True)
    history.touch(0o644)
    history.chmod(0o644)
    async with serving(Parrot()) as url, terminal(tmp_path, url) as user:
        await user.sees(PROMPT)
        assert stat.S_IMODE(history.stat().st_mode) == 0o600


async def test_chat_works_without_a_history_file(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no folder")
    async with serving(Parrot()) as url, terminal(tmp_path, url) as user:
        await user.sees(PROMPT)
        user.types("hi\n")
        assert "Hello!" in await user.sees(PROMPT)


async def test_an_error_on_a_terminal_is_a_line_and_the_chat_goes_on(tmp_path: Path) -> None:
    parrot = Parrot((error("503 Busy", b'{"error":{"message":"the queue\\nis full"}}'), Parrot().answers[0]))
    async with serving(parrot) as url, terminal(tmp_path, url) as user:
        await user.sees(PROMPT)
        user.types("hi\n")
        shown = await user.sees(PROMPT)
        assert "roost: HTTP 503: the queue is full\r\n" in shown
        assert "Traceback" not in shown
        user.types("/retry\n")
        assert "Hello!" in await user.sees(PROMPT)
    assert parrot.texts(1) == ["hi"]


async def test_a_terminal_gets_no_control_characters(tmp_path: Path) -> None:
    """They could set the window's title, or type for the user."""
    parrot = Parrot((stream(delta("a\x1b]0;owned\x07\x9b31m\rb", "stop")),))
    async with serving(parrot) as url, terminal(tmp_path, url) as user:
        await user.sees(PROMPT)
        user.types("hi\n")
        assert "a]0;owned31mb\r\n" in await user.sees(PROMPT)


def test_lines_of_a_pipe_are_messages_and_stdout_has_responses_only(tmp_path: Path) -> None:
    parrot = Parrot()
    text = b'hi\n\n/help\n"""\none\n\ntwo\n"""\r\nlast'
    with serving_beside(parrot) as url:
        status, out, err = piped(tmp_path, url, text, "--temperature", "0", "--max-tokens", "7")
    assert (status, out) == (0, b"Hello!\n" * 3)
    assert b"/retry" in err
    assert b"\x1b" not in out
    assert parrot.texts(2) == ["hi", "Hello!", "one\n\ntwo", "Hello!", "last"]
    assert {"temperature": 0.0, "max_tokens": 7, "model": "parrot"}.items() <= parrot.bodies[0].items()
    assert "top_p" not in parrot.bodies[0]
    assert not (tmp_path / "state").exists()


def test_open_quotes_end_with_the_input(tmp_path: Path) -> None:
    parrot = Parrot()
    with serving_beside(parrot) as url:
        assert piped(tmp_path, url, b'"""one\ntwo')[0] == 0
    assert parrot.texts(0) == ["one\ntwo"]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
async def test_bytes_that_are_no_text_are_replaced(tmp_path: Path, encoding: str) -> None:
    parrot = Parrot((stream(delta("é", "stop")),))
    async with serving(parrot) as url:
        status, out, err = await piped_process(tmp_path, url, b"\xff\xfe\n", PYTHONIOENCODING=encoding)
    assert (status, err) == (0, b"")
    assert out == ("é\n".encode() if encoding == "utf-8" else b"?\n")
    assert set(parrot.texts(0)[0]) <= {"\ufffd", "?"}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (error("401 No", b'{"error":{"message":"the key is wrong"}}'), b"roost: HTTP 401: the key is wrong\n"),
        (error("500 Oops", b"<html>"), b"roost: HTTP 500\n"),
        (json_answer(b'{"choices":[]}'), b"roost: the stream ended before the response did\n"),
        (stream(event(b"nonsense")), b"roost: the server does not stream OpenAI's chunks; see --url\n"),
        (stream(event(b"[1]")), b"roost: the server does not stream OpenAI's chunks; see --url\n"),
        (stream(event(b'{"error":{"message":"it\\ndied"}}')), b"roost: it died\n"),
        (b"SSH-2.0-x\r\n", b"roost: the server did not answer: the answer is not HTTP/1.1\n"),
    ],
)
def test_the_first_error_in_a_pipe_ends_the_chat(tmp_path: Path, answer: bytes, message: bytes) -> None:
    parrot = Parrot((answer,))
    with serving_beside(parrot) as url:
        assert piped(tmp_path, url, b"hi\nmore\n") == (1, b"", message)
    assert len(parrot.bodies) == 1


def test_an_interrupted_response_ends_its_line(tmp_path: Path) -> None:
    parrot = Parrot((stream(delta("Hel"), event(b'{"error":{"message":"it died"}}')),))
    with serving_beside(parrot) as url:
        assert piped(tmp_path, url, b"hi\n") == (1, b"Hel\n", b"roost: it died\n")


def test_the_token_limit_is_reported(tmp_path: Path) -> None:
    with serving_beside(Parrot((stream(delta("Hel", "length")),))) as url:
        status, out, err = piped(tmp_path, url, b"hi\n")
    assert (status, out) == (0, b"Hel\n")
    assert b"--max-tokens" in err


def test_the_key_comes_from_the_environment_and_is_shown_nowhere(tmp_path: Path) -> None:
    parrot = Parrot()
    with serving_beside(parrot) as url:
        _, out, err = piped(tmp_path, url, b"hi\n", "other", ROOST_API_KEY="sesame")
    assert all(b"Authorization: Bearer sesame\r\n" in head for head in parrot.heads)
    assert parrot.bodies[0]["model"] == "other"
    assert b"sesame" not in out + err


def test_an_unreachable_server_is_one_line(tmp_path: Path) -> None:
    with serving_beside(Parrot()) as url:
        pass
    status, out, err = piped(tmp_path, url, b"hi\n")
    assert (status, out) == (1, b"")
    assert err == b"roost: the server cannot be asked for its models: connection refused; see --url\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "localhost:8000"], "--url localhost:8000: it is not the URL"),
        (["--url", "http://127.0.0.1:1", "--dtype", "float32"], "--dtype is for a model that is loaded here"),
        (["--url", "http://127.0.0.1:1", "--api-key", "a\r\nb"], "--api-key "),
        (["--dtype", "half"], "--dtype must be "),
    ],
)
def test_an_error_that_a_user_can_fix_is_one_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["chat", *arguments])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith(f"roost: {message}")


# --- without a process


@dataclass
class Echo:
    """Answers with the number of messages it got.

    Attributes:
      interrupts: how many of the next answers a Ctrl-C stops before their first word.
      after: states that the messages continue.
      loads: messages of every state that it loads.
    """

    interrupts: int = 0
    asked: list[list[str]] = field(default_factory=list)
    after: list[str | None] = field(default_factory=list)
    loads: Sequence[ChatTurn] = ()

    async def start(self) -> str:
        return "echo"

    async def respond(self, messages: Sequence[ChatTurn], reply: Reply, state_id: str | None = None) -> None:
        self.asked.append([message["content"] for message in messages])
        self.after.append(state_id)
        reply.id = str(len(self.asked))
        if self.interrupts:
            self.interrupts -= 1
            raise KeyboardInterrupt
        reply.show(str(len(messages)))

    async def save(self, reply: Reply) -> bytes:
        return f"state of {reply.id}".encode()

    async def load(self, data: bytes) -> LoadedState:
        return {"id": data.decode(), "tokens": 7, "messages": self.loads}

    async def close(self) -> None:
        pass


def talk(backend: Echo, *lines: str, is_interactive: bool = True) -> int:
    rest: Iterator[str] = iter(lines)

    def read_line(prompt: str) -> str:
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    with asyncio.Runner() as runner:
        return Session(runner, backend, read_line, is_interactive=is_interactive).run()


def test_a_message_without_a_response_is_not_part_of_the_conversation() -> None:
    backend = Echo(interrupts=1)
    assert talk(backend, "a", "b", "/retry") == 0
    assert backend.asked == [["a"], ["b"], ["b"]]


def test_a_failed_retry_keeps_the_previous_response() -> None:
    backend = Echo()
    lines = iter(["a", "/retry", "b"])

    def read_line(prompt: str) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        backend.interrupts = int(line == "/retry")
        return line

    with asyncio.Runner() as runner:
        Session(runner, backend, read_line, is_interactive=True).run()
    assert backend.asked == [["a"], ["a"], ["a", "1", "b"]]


def test_a_conversation_forks_and_goes_back() -> None:
    """A fork keeps the question that /retry repeats."""
    backend = Echo()
    assert talk(backend, "a", "/fork", "b", "/fork 1", "c", "/fork 1", "/retry") == 0
    assert backend.asked == [["a"], ["a", "1", "b"], ["a", "1", "c"], ["a"]]


def test_a_state_is_saved_and_loaded(tmp_path: Path) -> None:
    """What follows is the whole conversation; the system prompt before it is in the state."""
    backend, file = Echo(), tmp_path / "boat.state"
    assert (
        talk(backend, "/system S", "a", "b", f"/save {file}", "/reset", f"/load {file}", "c", "d", "/reset", "e") == 0
    )
    assert file.read_text() == "state of 2"
    assert backend.asked[2:] == [["c"], ["c", "1", "d"], ["e"]]
    assert backend.after == [None, None, "state of 2", "state of 2", None]


def test_the_chat_of_a_state_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters of a file are not."""
    file = tmp_path / "boat.state"
    file.write_text("a state")
    turns = [ChatTurn(role="user", content="Hi\x1b[2J."), ChatTurn(role="assistant", content="Hello!")]
    talk(Echo(loads=turns), f"/load {file}")
    noted = f"(the conversation continues after the 7 tokens of {file}"
    assert capsys.readouterr().err == f">>> Hi[2J.\nHello!\n{noted})\n\n"
    talk(Echo(), f"/load {file}")
    assert capsys.readouterr().err == f"{noted}, whose text cannot be shown)\n\n"
    talk(Echo(loads=turns), f"/load {file}", is_interactive=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["/save"], "/save: name a file, such as /save chat.state"),
        (["a", "/save "], "/save: name a file, such as /save chat.state"),
        (["/load"], "/load: name a file, such as /load chat.state"),
        (["/save x"], "/save: there is no answer yet"),
        (["a", "/reset", "/save x"], "/save: there is no answer yet"),
        (["a", "/save /dev/null/x"], "/save: /dev/null/x cannot be written"),
        (["/load /dev/null/x"], "/load: /dev/null/x cannot be read"),
        (["/fork 7"], "/fork 7: there is no such fork: none is kept yet; /fork alone keeps the conversation"),
        (
            ["/fork", "/fork 2"],
            "/fork 2: there is no such fork: there are 1, from /fork 1 on; /fork alone keeps the conv",
        ),
        (["/fork x"], "/fork x: there is no such fork"),
    ],
)
def test_a_command_that_cannot_be_is_one_line(lines: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        talk(Echo(), *lines, is_interactive=False)


def test_ctrl_c_in_a_pipe_is_the_end() -> None:
    with pytest.raises(KeyboardInterrupt):
        talk(Echo(interrupts=1), "a", "b", is_interactive=False)


def test_a_space_in_front_sends_what_looks_like_a_command() -> None:
    backend = Echo()
    assert talk(backend, " /reset the counter", "/exit", "more") == 0
    assert backend.asked == [[" /reset the counter"]]


def test_in_a_pipe_a_wrong_command_is_an_error() -> None:
    with pytest.raises(CommandError, match="/nope is no command"):
        talk(Echo(), "/nope", is_interactive=False)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["a"], "a"),
        (['"""a"""'], "a"),
        (['"""', "a", "", "b", '"""'], "a\n\nb"),
        (['"""a', 'b"""  '], "a\nb"),
        (['""""""'], ""),
        (['"""', "a"], "a"),
        ([], None),
    ],
)
def test_texts_of_several_lines(lines: list[str], text: str | None) -> None:
    rest = iter(lines)

    def read_line(prompt: str) -> str:
        line = next(rest, None)
        if line is None:
            raise EOFError
        return line

    assert read_message(read_line) == text
