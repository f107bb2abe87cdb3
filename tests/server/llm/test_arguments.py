"""Mistakes in calls of the Python API are one line that names the argument and the fix, before anything happens."""

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from roost import LLM, AsyncLLM, ConfigError, RequestError, RoostError, SamplingParams
from roost.server.llm.tokenizer import LLMTokenizer

PARAMS = "sampling_params must be SamplingParams, such as SamplingParams(max_tokens=3), got "
PROMPTS = 'prompts must be text, token ids or a list of prompts, such as ["Once upon a time", "The sea is"], got '
MESSAGES = 'must be a list of messages, such as [{"role": "user", "content": "Hello!"}], got '
PAIR = 'pairs[0] must be a context and a continuation, such as ("The sea is", " blue"), got '
STATE = "must be a State, which save_state and load_state return, got "
QUESTION = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module", autouse=True)
def simulated() -> Iterator[None]:
    """Lets models load and compile nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROOST_SIMULATE", "v5e")
        yield


@pytest.fixture(scope="module")
def llm(simulated: None) -> Iterator[LLM]:
    with LLM("demo", slots=4) as llm:
        yield llm


MISTAKES: list[tuple[Callable[[Any], object], str]] = [
    (lambda llm: llm.generate("a", {"max_tokens": 3}), f"{PARAMS}{{'max_tokens': 3}}"),
    (lambda llm: llm.generate(["a", "b"], [SamplingParams(), 3]), PARAMS.replace("params", "params[1]") + "3"),
    (lambda llm: llm.generate(5), f"{PROMPTS}5"),
    (lambda llm: llm.generate(None), f"{PROMPTS}None"),
    (lambda llm: llm.generate(b"hi"), f"{PROMPTS}b'hi'"),
    (lambda llm: llm.generate({5}), f"{PROMPTS}{{5}}"),
    (lambda llm: llm.generate(["a", 5]), "prompts[1] must be text or token ids, got 5"),
    (lambda llm: llm.generate([5, "a"]), "prompts must be text or token ids, got [5, 'a']"),
    (
        lambda llm: llm.generate(QUESTION),
        "prompts[0]: a dict must have the key prompt or prompt_token_ids; chat takes messages",
    ),
    (
        lambda llm: llm.generate("a", max_tokens=3),
        "generate() has no argument 'max_tokens': pass SamplingParams(max_tokens=3)",
    ),
    (
        lambda llm: llm.generate("a", temperatur=0.5),
        "generate() has no argument 'temperatur': pass SamplingParams(temperature=0.5)",
    ),
    (
        lambda llm: llm.generate("a", x=1),
        "generate() has no argument 'x'; it has prompts, sampling_params, use_tqdm, from_state",
    ),
    (lambda llm: llm.generate(prompt="a"), "generate() has no argument 'prompt'; did you mean prompts?"),
    (lambda llm: llm.generate(), "generate(): missing a required argument: 'prompts'"),
    (
        lambda llm: llm.generate("a", lora_request=5),
        "lora_request is vLLM's name: merge adapters into the model with LLM(model, lora=[...])",
    ),
    (
        lambda llm: llm.generate("a", prompt_token_ids=[[2]]),
        "prompt_token_ids is vLLM's name: pass token ids as prompts, such as generate([[2, 651], [2, 139]])",
    ),
    (lambda llm: llm.generate("a", from_state="state_1"), f"from_state {STATE}'state_1'"),
    (
        lambda llm: llm.generate("a", tools=[]),
        "generate() has no argument 'tools': it is for messages, which chat takes",
    ),
    (lambda llm: llm.chat("hi"), f"messages {MESSAGES}'hi'"),
    (lambda llm: llm.chat(QUESTION[0]), f"messages {MESSAGES}{{'content': 'hi', 'role': 'user'}}"),
    (lambda llm: llm.chat(["hi"]), f"messages[0] must be a message, or {MESSAGES[8:]}'hi'"),
    (
        lambda llm: llm.chat(QUESTION, max_tokens=3),
        "chat() has no argument 'max_tokens': pass SamplingParams(max_tokens=3)",
    ),
    (lambda llm: llm.chat(QUESTION, {"max_tokens": 3}), f"{PARAMS}{{'max_tokens': 3}}"),
    (lambda llm: llm.chat(QUESTION, tool=[]), "chat() has no argument 'tool'; did you mean tools?"),
    (
        lambda llm: llm.chat(QUESTION, chat_template="{}"),
        "chat_template is vLLM's name: put the template into the checkpoint's folder as chat_template.jinja",
    ),
    (lambda llm: llm.stream(5), "prompt must be text, token ids or messages, got 5"),
    (
        lambda llm: list(llm.stream("a", tools=[])),
        "generate() has no argument 'tools': it is for messages, which chat takes",
    ),
    (lambda llm: llm.stream("a", {"max_tokens": 3}), f"{PARAMS}{{'max_tokens': 3}}"),
    (
        lambda llm: llm.stream("a", max_tokens=3),
        "stream() has no argument 'max_tokens': pass SamplingParams(max_tokens=3)",
    ),
    (lambda llm: llm.fork("state_1", "a"), f"state {STATE}'state_1'"),
    (lambda llm: llm.fork(None, "a"), f"state {STATE}None"),
    (
        lambda llm: llm.score("ab"),
        'pairs must be a list of a context and a continuation each, such as [("The sea is", " blue")], got \'ab\'',
    ),
    (lambda llm: llm.score(["ab"]), f"{PAIR}'ab'"),
    (lambda llm: llm.score(("a", "b")), f"{PAIR}'a'"),
    (lambda llm: llm.score([("a", "b", "c")]), f"{PAIR}('a', 'b', 'c')"),
    (lambda llm: llm.score([("a", 5)]), "continuation must be text or token ids, got 5"),
    (lambda llm: llm.score([("a", "b")], max_tokens=3), "score() has no argument 'max_tokens'; it has pairs, use_tqdm"),
    (lambda llm: llm.save_state(5), "request must be a RequestOutput, or the id of a request, got 5"),
    (lambda llm: llm.save_state("cmpl-1", "x"), "index must be a whole number, got 'x'"),
    (lambda llm: llm.export_state("state_1", "a"), f"state {STATE}'state_1'"),
    (lambda llm: llm.load_state(5), "path must be the path of a file, got 5"),
    (lambda llm: llm.delete_state("state_1"), f"state {STATE}'state_1'"),
    (lambda llm: llm.get_tokenizer().encode(5), "text must be a string, got 5"),
    (lambda llm: llm.get_tokenizer().decode("a"), "token_ids must be a list of token ids, such as [651, 139], got 'a'"),
    (lambda llm: llm.get_tokenizer().decode([3072]), "token_ids must be a list of ids from 0 to 3071, got [3072]"),
    (lambda llm: llm.get_tokenizer().decode([-1]), "token_ids must be a list of ids from 0 to 3071, got [-1]"),
    (lambda llm: llm.get_tokenizer().apply_chat_template("hi"), f"conversation {MESSAGES}'hi'"),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES, ids=[message[:50] for _, message in MISTAKES])
def test_a_mistake_is_one_line_with_the_argument_and_the_fix(
    llm: LLM, call: Callable[[Any], object], message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        call(llm)
    assert str(caught.value) == message


ASYNC_MISTAKES: list[tuple[Callable[[Any], object], str]] = [
    (lambda llm: llm.generate(5), "prompt must be text, token ids or messages, got 5"),
    (lambda llm: llm.generate("a", {"max_tokens": 3}), f"{PARAMS}{{'max_tokens': 3}}"),
    (
        lambda llm: llm.generate("a", max_tokens=3),
        "generate() has no argument 'max_tokens': pass SamplingParams(max_tokens=3)",
    ),
    (lambda llm: llm.generate("a", request_id=5), "request_id must be a string, got 5"),
    (lambda llm: llm.chat("hi"), f"messages {MESSAGES}'hi'"),
    (lambda llm: llm.chat(QUESTION, 5), f"{PARAMS}5"),
    (lambda llm: llm.score("a", 5), "continuation must be text or token ids, got 5"),
    (lambda llm: llm.save_state(None), "request must be a RequestOutput, or the id of a request, got None"),
    (lambda llm: llm.export_state(None, "a"), f"state {STATE}None"),
    (lambda llm: llm.load_state(None), "path must be the path of a file, got None"),
    (lambda llm: llm.delete_state("state_1"), f"state {STATE}'state_1'"),
]


@pytest.mark.parametrize(("call", "message"), ASYNC_MISTAKES, ids=[message[:50] for _, message in ASYNC_MISTAKES])
async def test_a_mistake_in_a_call_of_an_async_llm_loads_nothing(call: Callable[[Any], object], message: str) -> None:
    llm = AsyncLLM("demo")
    with pytest.raises(RequestError) as caught:
        call(llm)
    assert str(caught.value) == message
    assert "slots=None" in repr(llm)


def test_every_public_method_checks_its_arguments() -> None:
    """Except those that take none."""
    for kind in (LLM, AsyncLLM, LLMTokenizer):
        methods = {name: each for name, each in vars(kind).items() if inspect.isfunction(each) and name[0] != "_"}
        for name, method in methods.items():
            if len(inspect.signature(method).parameters) > 1:
                assert "checks_arguments" in method.__code__.co_qualname, f"{kind.__name__}.{name}"
    assert inspect.iscoroutinefunction(AsyncLLM.score)


def test_what_is_like_a_list_or_has_no_effect_is_taken(llm: LLM) -> None:
    short = SamplingParams(max_tokens=1)
    arrays: list[Any] = [np.array([5, 6]), (5, 6), range(5, 7), {"prompt_token_ids": np.array([5, 6])}]
    assert {output.prompt_token_ids for output in llm.generate(arrays, short)} == {(5, 6)}
    assert llm.generate(np.array([5, 6]), short)[0].prompt_token_ids == (5, 6)  # type: ignore[arg-type]
    assert len(llm.generate(np.array(["a", "b"]), [short, short])) == 2  # type: ignore[arg-type]
    assert llm.generate("a", short, lora_request=None, priority=None)[0].finished
    assert llm.chat(QUESTION, short, chat_template_content_format="auto")[0].finished  # type: ignore[call-arg]


def test_a_model_shows_its_name_dtype_and_slots(llm: LLM) -> None:
    assert repr(llm) == "LLM('demo-simulated', dtype='bfloat16', slots=4)"
    assert repr(AsyncLLM("demo", dtype="float32")) == "AsyncLLM('demo-simulated', dtype='float32', slots=None)"


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("demoo", {}, "demoo: no such directory; did you mean demo? MODEL is a directory "),
        ("random2b", {}, "random2b: no such directory; did you mean random:2b? MODEL is a directory "),
        (None, {}, "model must be a name or the path of a directory, such as 'demo', got None"),
        (5, {}, "model must be a name or the path of a directory, such as 'demo', got 5"),
        ("demo", {"config": 5}, "config must be the path of a TOML file, got 5"),
        ("demo", {"lora": 5}, "lora must be an array, got 5"),
        ("demo", {"slots": 0}, "slots must be at least 1, got 0"),
        ("demo", {"slot": 4}, "there is no setting 'slot'; did you mean slots?"),
        ("demo", {"max_num_seqs": 4}, "max_num_seqs is vLLM's name: use slots"),
        ("demo", {"tensor_parallel_size": 2}, "tensor_parallel_size is vLLM's name: use mesh, such as data=1,model=2"),
    ],
)
def test_a_wrong_model_or_setting_is_one_line(model: Any, settings: dict[str, Any], message: str) -> None:
    for kind in (LLM, AsyncLLM):
        with pytest.raises(ConfigError) as caught:
            kind(model, **settings)
        assert str(caught.value).startswith(message)


def test_a_model_may_be_a_path(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    assert "'demo-simulated'" in repr(AsyncLLM(pytestconfig.rootpath / "configs" / "demo"))
    with pytest.raises(RoostError, match="nothing: no such directory"):
        AsyncLLM(tmp_path / "nothing")


def test_parameters_are_copied_and_replaced() -> None:
    params = SamplingParams(max_tokens=3)
    assert copy.copy(params) == copy.deepcopy(params) == replace(SamplingParams(), max_tokens=3) == params
