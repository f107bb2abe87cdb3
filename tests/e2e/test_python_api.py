"""`LLM` and `AsyncLLM` give what the server gives over HTTP, bit for bit, from notebooks and scripts alike."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
from forbidden_imports import WEB, run
from roost import (
    LLM,
    AsyncLLM,
    CompletionOutput,
    EngineArgs,
    EngineDeadError,
    Logprob,
    RequestError,
    RequestOutputKind,
    RoostError,
    SamplingParams,
    State,
    StructuredOutputsParams,
    TextPrompt,
    TokensPrompt,
)
from server_process import API_KEY, SLOTS, ServerProcess
from shared_programs import compiled_once

SEEDED = SamplingParams(seed=7, temperature=0.9, max_tokens=12, ignore_eos=True, logprobs=2)
QUESTION = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module")
def llm(tiny_config: Path) -> Iterator[LLM]:
    with compiled_once("tiny"):
        llm = LLM(f"random:{tiny_config}", slots=SLOTS, prefill_chunk=128)
    with llm:
        yield llm


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"x-api-key": API_KEY}, timeout=60) as client:
        yield client


def choices_over_http(client: httpx.Client, path: str, **body: Any) -> list[dict[str, Any]]:
    response = client.post(path, json={"return_token_ids": True, **body})
    assert response.status_code == 200, response.text
    return response.json()["choices"]


def own_logprobs(output: CompletionOutput) -> list[float]:
    assert output.logprobs is not None
    return [entry[token_id].logprob for token_id, entry in zip(output.token_ids, output.logprobs, strict=True)]


def test_completions_equal_https_bit_for_bit(llm: LLM, client: httpx.Client) -> None:
    prompts: list[Any] = ["the boat", [5, 6, 7], {"prompt_token_ids": [9] * 200}, {"prompt": "a"}]
    outputs = llm.generate(prompts, SEEDED)
    fields = SEEDED.body_fields()
    for output, prompt in zip(outputs, ["the boat", [5, 6, 7], [9] * 200, "a"], strict=True):
        (choice,) = choices_over_http(client, "/v1/completions", prompt=prompt, **fields)
        (own,) = output.outputs
        assert (list(own.token_ids), own.text) == (choice["token_ids"], choice["text"])
        assert own_logprobs(own) == choice["logprobs"]["token_logprobs"]
        assert list(output.prompt_token_ids) == choice["prompt_token_ids"]
        assert (own.finish_reason, output.finished) == ("length", True)


def test_choices_equal_https_bit_for_bit(llm: LLM, client: httpx.Client) -> None:
    params = SamplingParams(n=3, seed=1, max_tokens=8, temperature=1.5, ignore_eos=True, stop_token_ids=[3])
    (output,) = llm.generate("once", params)
    choices = choices_over_http(client, "/v1/completions", prompt="once", **params.body_fields())
    assert [list(each.token_ids) for each in output.outputs] == [choice["token_ids"] for choice in choices]
    assert len({each.token_ids for each in output.outputs}) == 3


def test_chats_equal_https_bit_for_bit(llm: LLM, client: httpx.Client) -> None:
    params = SamplingParams(seed=3, max_tokens=10, logprobs=1, prompt_logprobs=1, ignore_eos=True)
    (output,) = llm.chat(QUESTION, params)
    body = {name: value for name, value in params.body_fields().items() if name != "logprobs"}
    response = client.post(
        "/v1/chat/completions",
        json={"messages": QUESTION, "return_token_ids": True, "logprobs": True, "top_logprobs": 1, **body},
    ).json()
    (choice,) = response["choices"]
    (own,) = output.outputs
    assert (list(own.token_ids), own.text) == (choice["token_ids"], choice["message"]["content"])
    assert own_logprobs(own) == [entry["logprob"] for entry in choice["logprobs"]["content"]]
    assert list(output.prompt_token_ids) == response["prompt_token_ids"]
    assert output.prompt is not None
    assert "Tell me a story." in output.prompt
    theirs = response["prompt_logprobs"]
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is theirs[0] is None
    for mine, entry in zip(output.prompt_logprobs[1:], theirs[1:], strict=True):
        assert mine is not None
        assert {str(token_id): each.logprob for token_id, each in mine.items()} == {
            token_id: each["logprob"] for token_id, each in entry.items()
        }


def test_defaults_are_https(llm: LLM, client: httpx.Client) -> None:
    """A completion has 16 tokens; a chat ends by itself, or at its limit."""
    (output,) = llm.generate("the boat", SamplingParams(seed=2, ignore_eos=True))
    (choice,) = choices_over_http(client, "/v1/completions", prompt="the boat", seed=2, ignore_eos=True)
    assert list(output.outputs[0].token_ids) == choice["token_ids"]
    assert len(output.outputs[0].token_ids) == 16
    (answer,) = llm.chat(QUESTION, SamplingParams(seed=11))
    assert answer.outputs[0].finish_reason == "stop"
    assert len(answer.outputs[0].token_ids) > 16


def test_each_prompt_may_have_parameters_of_its_own(llm: LLM) -> None:
    outputs = llm.generate(["a", "b"], [SamplingParams(max_tokens=count, ignore_eos=True) for count in (2, 3)])
    assert [len(output.outputs[0].token_ids) for output in outputs] == [2, 3]
    with pytest.raises(RequestError, match="one for all or one for each of 2 prompts, got 1"):
        llm.generate(["a", "b"], [SamplingParams()])
    assert llm.generate([]) == []


def test_more_prompts_than_slots_come_back_in_order(llm: LLM) -> None:
    outputs = llm.generate([[5 + index] for index in range(3 * SLOTS)], SamplingParams(max_tokens=2))
    assert [output.prompt_token_ids for output in outputs] == [(5 + index,) for index in range(3 * SLOTS)]


def test_output_matches_its_constraint(llm: LLM) -> None:
    wanted = StructuredOutputsParams(choice=("yes", "no"))
    (output,) = llm.chat(QUESTION, SamplingParams(structured_outputs=wanted))
    assert output.outputs[0].text in ("yes", "no")
    schema = {"type": "object", "properties": {"a": {"type": "integer", "x-unit": "m", "multipleOf": 3}}}
    (output,) = llm.chat(
        QUESTION, SamplingParams(structured_outputs=StructuredOutputsParams(json=schema), max_tokens=40)
    )
    assert output.outputs[0].text.startswith("{")
    (output,) = llm.chat(QUESTION, tools=[TOOL], tool_choice="required")
    (call, *_) = output.outputs[0].tool_calls
    assert (call.name, output.outputs[0].finish_reason) == ("f", "tool_calls")


def test_unknown_and_refused_fields_of_a_message_are_https(llm: LLM) -> None:
    params = SamplingParams(max_tokens=1)
    (output,) = llm.chat([{"role": "user", "content": "a", "cntnt": "b"}], params)
    assert output.warnings == ("messages[0].cntnt",)
    with pytest.raises(RequestError, match=r"^the field 'messages\[0\].contnt' is unknown; did you mean content\?$"):
        llm.chat([{"role": "user", "content": "a", "contnt": "b"}], params)
    called: Any = {"role": "assistant", "function_call": {"name": "f"}}
    with pytest.raises(RequestError, match=r"^messages\[1\].function_call is not supported: use tool_calls$"):
        llm.chat([*QUESTION, called], params)


def test_a_stream_is_the_whole_in_pieces(llm: LLM) -> None:
    (whole,) = llm.generate("the boat", SEEDED)
    pieces = [output.outputs[0] for output in llm.stream("the boat", SEEDED)]
    assert "".join(piece.text for piece in pieces) == whole.outputs[0].text
    assert sum((piece.token_ids for piece in pieces), ()) == whole.outputs[0].token_ids
    assert [piece.finished() for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    chat = list(llm.stream(QUESTION, SamplingParams(max_tokens=3)))
    assert chat[-1].finished


def test_a_closed_stream_ends_its_request(llm: LLM) -> None:
    endless = SamplingParams(ignore_eos=True, max_tokens=10**9)
    for _ in range(SLOTS + 1):
        stream = llm.stream("the boat", endless)
        next(stream)
        stream.close()
    assert llm.generate("the boat")[0].finished


def test_a_state_is_continued_as_its_history_would_be(llm: LLM, tmp_path: Path) -> None:
    (first,) = llm.generate([9] * 200, SEEDED)
    state = llm.save_state(first)
    assert state.num_tokens == 200 + 12
    whole = [*first.prompt_token_ids, *first.outputs[0].token_ids]
    forks = llm.fork(state, [[5], [6]], SEEDED)
    for fork, token_id in zip(forks, (5, 6), strict=True):
        assert list(fork.prompt_token_ids) == [*whole, token_id]
        assert fork.num_cached_tokens >= 128
    assert forks[0].outputs[0].token_ids == llm.generate([*whole, 5], SEEDED)[0].outputs[0].token_ids
    pieces = list(llm.stream([5], SEEDED, from_state=state))
    assert sum((piece.outputs[0].token_ids for piece in pieces), ()) == forks[0].outputs[0].token_ids
    file = tmp_path / "boat.state"
    llm.export_state(state, file)
    llm.delete_state(state)
    with pytest.raises(RequestError, match="there is no state with the id"):
        llm.fork(state, [5])
    again = llm.load_state(file)
    assert llm.fork(again, [5], SEEDED)[0].outputs[0].token_ids == forks[0].outputs[0].token_ids


def test_a_state_that_cannot_be_is_one_line(llm: LLM, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no request with the id 'cmpl-1' and a choice 0 is running"):
        llm.save_state("cmpl-1")
    file = tmp_path / "no.state"
    with pytest.raises(RoostError, match="cannot be read"):
        llm.load_state(file)
    file.write_bytes(b"nothing")
    with pytest.raises(RoostError, match=f"^{file} "):
        llm.load_state(file)
    with pytest.raises(RequestError, match="there is no state with the id 'state_1'"):
        next(llm.stream(QUESTION, from_state=State("state_1", 1, 1)))


def test_a_conversation_continues_a_state(llm: LLM) -> None:
    (first,) = llm.chat(QUESTION, SEEDED)
    state = llm.save_state(first)
    (second,) = llm.chat(QUESTION, SEEDED, from_state=state)
    prompt, history = list(second.prompt_token_ids), [*first.prompt_token_ids, *first.outputs[0].token_ids]
    assert prompt[: len(history)] == history
    assert len(prompt) > len(history) + len(first.prompt_token_ids) - 2
    streamed = list(llm.stream(QUESTION, SEEDED, from_state=state))
    assert sum((piece.outputs[0].token_ids for piece in streamed), ()) == second.outputs[0].token_ids


def test_scores_are_the_log_probabilities_over_http(llm: LLM, client: httpx.Client) -> None:
    context, continuation = [5, 6, 7], [8, 9, 300]
    (score, whole) = llm.score([(context, continuation), ([], continuation)])
    bos = llm.get_tokenizer().encode("")
    for each, before in ((score, [*bos, *context]), (whole, [*bos])):
        body = {"token_ids": before + continuation, "prompt_logprobs": 0, "max_tokens": 0}
        choice = client.post("/generate", json=body).raise_for_status().json()["choices"][0]
        assert list(each.token_logprobs) == choice["prompt_logprobs"]["own"][len(before) :]
        assert each.logprob == pytest.approx(sum(each.token_logprobs))
        assert each.token_ids == tuple(continuation)


def test_a_greedy_continuation_is_greedy(llm: LLM) -> None:
    prompt = [5] * 9
    bos = llm.get_tokenizer().encode("")
    (output,) = llm.generate([*bos, *prompt], SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True))
    ids = list(output.outputs[0].token_ids)
    greedy, other = llm.score([(prompt, ids), (prompt, [*ids[:2], (ids[2] + 1) % 512])])
    assert (greedy.is_greedy, other.is_greedy) == (True, False)
    assert greedy.logprob > other.logprob


def test_texts_are_scored_as_one_text(llm: LLM) -> None:
    with_space, without = llm.score([("the boat ", "went"), ("the boat", " went")])
    assert with_space == without
    with pytest.raises(RequestError, match="must be text if context is"):
        llm.score([("the boat", [5])])
    with pytest.raises(RequestError, match="no tokens of its own"):
        llm.score([("the boat", "")])


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ("a", {"temperature": -1.0}, "temperature must be at least 0"),
        ("a", {"n": 0}, "n must be at least 1"),
        ([], {}, None),
        ([10**6], {}, "token id 1000000 is outside the vocabulary of 512 tokens"),
        ({"text": "a"}, {}, "prompts: a dict must have the key prompt or prompt_token_ids"),
        ("a", {"structured_outputs": StructuredOutputsParams(regex="(")}, "structured_outputs"),
        ("a", {"stop": "x" * 5000}, "stop must have at most 4096 characters"),
    ],
)
def test_what_is_wrong_is_one_line(llm: LLM, prompt: Any, params: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert llm.generate(prompt, SamplingParams(**params)) == []
        return
    with pytest.raises(RequestError) as caught:
        llm.generate(prompt, SamplingParams(**params))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


async def test_a_running_event_loop_does_not_matter(llm: LLM) -> None:
    """Notebooks run one."""
    assert llm.generate("a", SamplingParams(max_tokens=1))[0].finished


async def test_async_outputs_are_cumulative_deltas_or_final(llm: LLM, tiny_config: Path) -> None:
    (whole,) = llm.generate("the boat", SEEDED)
    async_llm = AsyncLLM(f"random:{tiny_config}", slots=SLOTS, prefill_chunk=128)
    async with async_llm:

        async def outputs(kind: RequestOutputKind) -> list[CompletionOutput]:
            params = SamplingParams(**{**SEEDED.body_fields(), "output_kind": kind})
            return [output.outputs[0] async for output in async_llm.generate("the boat", params)]

        cumulative, deltas, final = await asyncio.gather(*map(outputs, RequestOutputKind))
        assert cumulative[-1] == final[0] == whole.outputs[0]
        assert [len(each.token_ids) for each in cumulative] == sorted({len(each.token_ids) for each in cumulative})
        assert sum((each.token_ids for each in deltas), ()) == whole.outputs[0].token_ids
        assert len(final) == 1
        chat = [output async for output in async_llm.chat(QUESTION, SamplingParams(max_tokens=2))]
        assert chat[-1].finished
        assert await async_llm.score("the boat", " went") == llm.score([("the boat", " went")])[0]
        state = await async_llm.save_state(chat[-1])
        params = SamplingParams(max_tokens=1)
        (forked,) = [output async for output in async_llm.generate([5], params, from_state=state)]
        assert len(forked.prompt_token_ids) == state.num_tokens + 1
    with pytest.raises(EngineDeadError, match=r"^the model was closed$"):
        [output async for output in async_llm.generate("a")]


async def test_an_async_llms_tokenizer_is_that_of_an_llm(llm: LLM, tiny_config: Path) -> None:
    """It is there before the model is loaded, and used on the event loop."""
    async_llm = AsyncLLM(f"random:{tiny_config}", slots=SLOTS, prefill_chunk=128)
    tokenizer, other = await async_llm.get_tokenizer(), llm.get_tokenizer()
    assert tokenizer.encode("the boat") == other.encode("the boat")
    template = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True)
    assert template == list(llm.chat(QUESTION, SamplingParams(max_tokens=1))[0].prompt_token_ids)
    with pytest.raises(RequestError, match=r"^messages"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "a"}])


def test_a_logprob_has_rank_and_name(llm: LLM) -> None:
    (output,) = llm.generate("the boat", SamplingParams(temperature=0.0, logprobs=2, max_tokens=1))
    logprobs = output.outputs[0].logprobs
    assert logprobs is not None
    first, second = logprobs[0].values()
    assert isinstance(first, Logprob)
    assert (first.rank, second.rank) == (1, 2)
    assert first.logprob >= second.logprob
    assert output.outputs[0].cumulative_logprob == first.logprob


STORY = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=4, seed=1)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def form_conversation(llm: LLM) -> None:
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert llm.chat(conversation, STORY, use_tqdm=False)[0].finished


def form_conversations(llm: LLM) -> None:
    conversations = [[{"role": "user", "content": f"Number {number}"}] for number in range(3)]
    outputs = llm.chat(messages=conversations, sampling_params=STORY, chat_template=None, use_tqdm=True)  # type: ignore[call-arg]
    assert len(outputs) == 3


def form_default_params(llm: LLM) -> None:
    params = llm.get_default_sampling_params()
    params.max_tokens, params.temperature = 3, 0.0
    assert len(llm.generate("Hello", params)[0].outputs[0].token_ids) <= 3


def form_token_ids(llm: LLM) -> None:
    prompts = [TokensPrompt(prompt_token_ids=[5, 6]), TokensPrompt(prompt_token_ids=[7])]
    assert [output.prompt_token_ids for output in llm.generate(prompts, STORY)] == [(5, 6), (7,)]


def form_text_prompts(llm: LLM) -> None:
    prompts: list[Any] = [TextPrompt(prompt="a"), {"prompt": "b"}]
    assert llm.generate(prompts, STORY)[1].prompt == "b"


def form_chat_template(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    assert llm.generate(text, STORY)[0].prompt_token_ids == llm.chat(QUESTION, STORY)[0].prompt_token_ids
    token_ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True)
    assert token_ids == tokenizer.encode(text) == list(llm.chat(QUESTION, STORY)[0].prompt_token_ids)


def form_tokenizer(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    token_ids = tokenizer.encode("the boat")
    assert token_ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(token_ids[1:]) == tokenizer.decode(token_ids, skip_special_tokens=True) == "the boat"
    assert tokenizer.encode("the boat", add_special_tokens=False) == token_ids[1:]
    assert len(tokenizer) == tokenizer.vocab_size == 512
    params = SamplingParams(max_tokens=2, stop_token_ids=[tokenizer.eos_token_id or 0])
    assert llm.generate("the boat", params)[0].prompt_token_ids == tuple(token_ids)


def form_tools(llm: LLM) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Call f."}]
    (output,) = llm.chat(messages, sampling_params=SamplingParams(max_tokens=32), tools=[TOOL], use_tqdm=False)
    messages += [{"role": "assistant", "content": output.outputs[0].text or "-"}, {"role": "user", "content": "b"}]
    assert llm.chat(messages, STORY, tools=[TOOL])[0].finished


def form_seed(llm: LLM) -> None:
    params = SamplingParams(temperature=0.9, seed=42, max_tokens=8)
    assert llm.generate("Hello", params)[0].outputs == llm.generate("Hello", params)[0].outputs


def form_logprobs(llm: LLM) -> None:
    (output,) = llm.generate("Hello", SamplingParams(n=2, max_tokens=2, logprobs=1, prompt_logprobs=1, temperature=1.0))
    assert len(output.outputs) == 2
    assert output.prompt_logprobs is not None


def form_penalties_and_words(llm: LLM) -> None:
    params = SamplingParams(
        presence_penalty=0.5,
        frequency_penalty=0.5,
        repetition_penalty=1.1,
        bad_words=["bad"],
        stop=["\n"],
        max_tokens=4,
    )
    assert llm.generate("Hello", params)[0].finished


FORMS = [each for name, each in list(globals().items()) if name.startswith("form_")]


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_vllms_offline_examples_runs(llm: LLM, form: Callable[[LLM], None]) -> None:
    """Calls that vLLM's examples of offline inference make, in our own words."""
    form(llm)


def test_an_llm_of_engine_args_shows_what_it_is_until_it_is_closed(
    tiny_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOST_SIMULATE", "v5e")  # loads nothing
    args = EngineArgs(
        model=f"random:{tiny_config}",
        max_num_seqs=SLOTS,
        max_num_batched_tokens=128,
        tensor_parallel_size=1,
        enable_prefix_caching=True,
        enforce_eager=True,
        trust_remote_code=False,
        gpu_memory_utilization=0.4,
    )
    with LLM(**asdict(args)) as llm:
        assert llm.generate("a", STORY)[0].finished
        stream = llm.stream("a", SamplingParams(ignore_eos=True, max_tokens=10**9))
        next(stream)
    with pytest.raises(RoostError, match="the model was closed"):
        llm.generate("a")
    with pytest.raises(EngineDeadError):
        list(stream)
    llm.close()


async def test_a_forked_process_is_told_to_make_its_own(
    llm: LLM, tiny_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async_llm = AsyncLLM(f"random:{tiny_config}", slots=SLOTS, prefill_chunk=128)
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(EngineDeadError, match=r"^the model is in the parent process: make one in each process, "):
        llm.generate([5])
    with pytest.raises(EngineDeadError, match=r"^the model is in the parent process: .*, started by spawn$"):
        [output async for output in async_llm.generate([5])]


def test_importing_roost_loads_neither_jax_nor_the_server() -> None:
    program = "import sys, roost; print(roost.__version__, *{'jax', 'fastapi', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "0.1.0\n"


SCRIPT = """
from roost import LLM, SamplingParams
llm = LLM({model!r}, slots=4, prefill_chunk=128)
print(llm.generate([5, 6, 7], SamplingParams(max_tokens=4, seed=7))[0].outputs[0].token_ids)
print(llm.chat({messages!r}, SamplingParams(max_tokens=4, seed=7))[0].outputs[0].token_ids)
stream = llm.stream([5], SamplingParams(ignore_eos=True, max_tokens=10**9))
next(stream)
"""


def test_a_script_needs_neither_http_nor_a_database_and_ends_by_itself(llm: LLM, tiny_config: Path) -> None:
    """Nor grammars nor a command line. It has no `if __name__`, closes nothing, and leaves a request that runs."""
    params = SamplingParams(max_tokens=4, seed=7)
    expected = [llm.generate([5, 6, 7], params), llm.chat(QUESTION, params)]
    script = SCRIPT.format(model=f"random:{tiny_config}", messages=QUESTION)
    found = run(script, *WEB, "psycopg", "typer", "llguidance")
    assert found.returncode == 0, found.stderr
    assert found.stdout == "".join(f"{output.outputs[0].token_ids}\n" for (output,) in expected)
    assert "Traceback" not in found.stderr
    assert "Exception" not in found.stderr
