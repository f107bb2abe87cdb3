"""Offsets, names and limits in the two shapes."""

from roost.engine import TokenLogprobs
from roost.server.generation.logprobs import CompletionLogprobsBuilder, TokenNames, chat_logprobs, prompt_logprobs
from roost.server.text.tokenizer import Tokenizer

A, OTHER_A, EURO = 4, 141, (270, 174, 216)  # two ids whose text is "a"; the bytes e2 82 ac
LEAST = -9999.0


def test_minus_infinity_is_a_number_in_json(tokenizer: Tokenizer) -> None:
    entry = TokenLogprobs(float("-inf"), ((A, float("-inf")),))
    (content,) = chat_logprobs(TokenNames(tokenizer), [A], [entry])["content"]
    assert (content["logprob"], content["top_logprobs"][0]["logprob"]) == (LEAST, LEAST)
    lists = CompletionLogprobsBuilder(TokenNames(tokenizer)).build([A], [entry])
    assert (lists["token_logprobs"], lists["top_logprobs"]) == ([LEAST], [{"a": LEAST}])


def test_bytes_rebuild_a_split_character(tokenizer: Tokenizer) -> None:
    content = chat_logprobs(TokenNames(tokenizer), EURO, [TokenLogprobs(-1.0)] * 3)["content"]
    assert [token["token"] for token in content] == ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]
    assert bytes(byte for token in content for byte in token["bytes"] or ()).decode() == "€"


def test_control_tokens_have_no_bytes(tokenizer: Tokenizer) -> None:
    (content,) = chat_logprobs(TokenNames(tokenizer), [1], [TokenLogprobs(-1.0)])["content"]
    assert (content["token"], content["bytes"]) == ("<eos>", None)


def test_the_likeliest_of_two_ids_with_one_text_is_kept(tokenizer: Tokenizer) -> None:
    entry = TokenLogprobs(-3.0, ((A, -1.0), (OTHER_A, -2.0), (5, -2.5)))
    lists = CompletionLogprobsBuilder(TokenNames(tokenizer)).build([OTHER_A], [entry])
    assert lists["top_logprobs"] == [{"a": -1.0, "b": -2.5}]
    assert lists["token_logprobs"] == [-3.0]


def test_the_token_itself_is_always_among_the_alternatives(tokenizer: Tokenizer) -> None:
    lists = CompletionLogprobsBuilder(TokenNames(tokenizer)).build([A], [TokenLogprobs(-3.0, ((5, -1.0),))])
    assert lists["top_logprobs"] == [{"b": -1.0, "a": -3.0}]


def test_offsets_count_characters_across_pieces(tokenizer: Tokenizer) -> None:
    writer = CompletionLogprobsBuilder(TokenNames(tokenizer))
    entries = [TokenLogprobs(-1.0)] * 3
    assert writer.build([A, *EURO[:2]], entries)["text_offset"] == [0, 1, 1]
    assert writer.build([EURO[2], 1, A], entries)["text_offset"] == [1, 2, 2]


def test_half_a_character_at_a_prompts_end_is_one_of_its_own(tokenizer: Tokenizer) -> None:
    writer = CompletionLogprobsBuilder(TokenNames(tokenizer))
    assert writer.build([A, EURO[0]], [TokenLogprobs(-1.0)] * 2, [b"a", b"\xe2"])["text_offset"] == [0, 1]
    assert writer.build([A], [TokenLogprobs(-1.0)])["text_offset"] == [2]


def test_what_comes_first_has_no_logprob(tokenizer: Tokenizer) -> None:
    lists = CompletionLogprobsBuilder(TokenNames(tokenizer)).build([2, A], [None, TokenLogprobs(-1.0)], [b"", b"a"])
    assert lists == {
        "tokens": ["<bos>", "a"],
        "token_logprobs": [None, -1.0],
        "top_logprobs": [None, {"a": -1.0}],
        "text_offset": [0, 0],
    }


def test_a_prompts_tokens_have_ranks_as_far_as_they_are_known(tokenizer: Tokenizer) -> None:
    alternatives = ((5, -1.0), (6, -2.0), (7, -3.0))
    entries = [None, TokenLogprobs(-2.0, alternatives), TokenLogprobs(float("-inf"), alternatives)]
    first, likely, unlikely = prompt_logprobs(tokenizer, [2, 6, A], entries, num_top=2)
    top = {
        "5": {"logprob": -1.0, "rank": 1, "decoded_token": "b"},
        "6": {"logprob": -2.0, "rank": 2, "decoded_token": "c"},
    }
    assert first is None
    assert likely == top
    assert unlikely == {**top, str(A): {"logprob": LEAST, "rank": None, "decoded_token": "a"}}
