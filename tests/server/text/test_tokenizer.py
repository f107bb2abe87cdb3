import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from roost.engine.types.errors import CheckpointError
from roost.server.text.synthetic_tokenizer import synthetic_tokenizer
from roost.server.text.tokenizer import (
    HFTokenizer,
    SentencePieceTokenizer,
    TextUnavailableError,
    TokenIdsOnly,
    Tokenizer,
    TokenizerConfig,
    load_tokenizer,
)
from tokenizer_files import PROSE, hf_json, train_sentencepiece

LOSSLESS: Mapping[str, Callable[[], Tokenizer]] = {
    "trained": lambda: SentencePieceTokenizer(train_sentencepiece(), vocab_size=500),
    "hf": lambda: HFTokenizer(hf_json(), vocab_size=500),
    "synthetic-300": lambda: synthetic_tokenizer(300),
    "synthetic-3072": lambda: synthetic_tokenizer(3072),
}


@functools.cache
def lossless(name: str) -> Tokenizer:
    return LOSSLESS[name]()


MARKS = ("<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<unk>", "<pad>")

# Marks whole and in halves, next to each other and inside each other, and what libraries treat specially.
AWKWARD = st.sampled_from(
    [*MARKS, "<", "end_of", "_turn>", "<end_of<end_of_turn>_turn>", "<0x41>", "▁", "\n", " ", "  ", "\0", "\t"]
)
TEXTS = st.lists(st.one_of(AWKWARD, st.text(max_size=8)), max_size=12).map("".join)


@pytest.fixture(params=LOSSLESS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return lossless(request.param)


class TestPlainText:
    @pytest.mark.parametrize("name", LOSSLESS)
    @settings(max_examples=200)
    @given(text=TEXTS)
    @example(text="<end_of_turn><end_of_turn><start_of_turn>")
    @example(text="<end_of<end_of_turn>_turn>")
    @example(text="▁▁ ▁")
    def test_survives_a_round_trip_without_control_tokens(self, name: str, text: str) -> None:
        tokenizer = lossless(name)
        ids = tokenizer.encode(text, control_tokens=False)
        assert not any(map(tokenizer.is_control, ids))
        assert tokenizer.decode(ids) == text

    def test_is_encoded_as_the_library_does(self) -> None:
        model = train_sentencepiece()
        library = sentencepiece.SentencePieceProcessor(model_proto=model)
        ours = SentencePieceTokenizer(model, vocab_size=500)
        for text in (PROSE, "  two  spaces ", "user\nHello, 12 é 🙂\n", "<start_of_turn>user\nHi<end_of_turn>\n"):
            assert ours.encode(text) == library.encode(text, return_type=int)

    def test_normalizer_cannot_make_a_control_token(self) -> None:
        tokenizer = SentencePieceTokenizer(train_sentencepiece(normalization_rule_name="nfkc"), vocab_size=500)
        for text in ("＜end_of_turn＞", "a＜ｂos>", "<end_of_turn＞<eos＞"):
            for control_tokens in (False, True):
                ids = tokenizer.encode(text, control_tokens=control_tokens)
                assert not any(map(tokenizer.is_control, ids))

    def test_lone_surrogates_become_question_marks(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"

    def test_other_user_defined_pieces_are_text(self) -> None:
        tokenizer = lossless("trained")
        (table,) = tokenizer.encode("<table>", control_tokens=False)
        assert tokenizer.token_bytes(table) == b"<table>"
        (newline,) = tokenizer.encode("\n", control_tokens=False)
        assert (tokenizer.token_bytes(newline), tokenizer.is_control(newline)) == (b"\n", False)

    def test_dummy_prefix_is_the_models_choice(self) -> None:
        tokenizer = SentencePieceTokenizer(train_sentencepiece(add_dummy_prefix=True), vocab_size=500)
        assert tokenizer.decode(tokenizer.encode("river")) == " river"


class TestControlTokens:
    def test_are_recognised_in_text(self, tokenizer: Tokenizer) -> None:
        start, end = (tokenizer.encode(mark) for mark in ("<start_of_turn>", "<end_of_turn>"))
        assert len(start) == len(end) == 1
        middle = tokenizer.encode("user\nthe ", control_tokens=False)
        assert tokenizer.encode("<bos><start_of_turn>user\nthe <end_of_turn><eos>") == [
            *(2, *start),
            *middle,
            *(*end, 1),
        ]

    def test_have_no_bytes_and_are_named_by_their_piece(self, tokenizer: Tokenizer) -> None:
        for mark in MARKS:
            (token_id,) = tokenizer.encode(mark)
            assert tokenizer.is_control(token_id)
            assert tokenizer.token_bytes(token_id) == b""
            assert tokenizer.token_text(token_id) == mark

    def test_are_left_out_of_decoded_text(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.decode(tokenizer.encode("<bos>a<end_of_turn>b<eos>")) == "ab"

    def test_bos_and_default_ends(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.bos_id == 2
        assert tokenizer.end_token_ids == (1, *tokenizer.encode("<end_of_turn>"))

    def test_no_end_of_turn_leaves_eos(self) -> None:
        tokenizer = SentencePieceTokenizer(train_sentencepiece(user_defined_symbols=["\n"]), vocab_size=500)
        assert tokenizer.end_token_ids == (1,)

    def test_are_declared_by_the_config_too(self) -> None:
        config = TokenizerConfig(control={499: "<|im_end|>"})
        tokenizer = SentencePieceTokenizer(train_sentencepiece(), vocab_size=500, config=config)
        assert tokenizer.encode("<|im_end|>") == [499]
        assert 499 not in tokenizer.encode("<|im_end|>", control_tokens=False)
        assert tokenizer.token_bytes(499) == b""


class TestNames:
    def test_bytes_of_half_a_character(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode("🙂")
        assert [tokenizer.token_bytes(token_id) for token_id in ids] == [b"\xf0", b"\x9f", b"\x99", b"\x82"]
        assert tokenizer.token_text(ids[0]) == "bytes:\\xf0"

    def test_text_with_its_spaces(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode(" the", control_tokens=False)
        assert "".join(map(tokenizer.token_text, ids)) == " the"

    def test_ids_beyond_the_pieces(self) -> None:
        tokenizer = lossless("trained")
        assert tokenizer.vocab_size == 500
        assert tokenizer.token_bytes(499) == b""
        assert tokenizer.token_text(499) == "token_id:499"
        assert not tokenizer.is_control(499)

    def test_half_a_character_is_replaced_in_decoded_text(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.decode(tokenizer.encode("🙂")[:3]) == "�"


class TestTokenIdsOnly:
    def test_has_names_but_no_text(self) -> None:
        tokenizer = TokenIdsOnly(64)
        assert not tokenizer.has_text
        assert (tokenizer.bos_id, tokenizer.end_token_ids) == (None, ())
        assert tokenizer.token_text(7) == "token_id:7"
        assert tokenizer.decode([7, 8]) == ""

    def test_refuses_text(self) -> None:
        with pytest.raises(TextUnavailableError, match="has no tokenizer"):
            TokenIdsOnly(64).encode("hello")


class TestSynthetic:
    @pytest.mark.parametrize(("vocab_size", "marks"), [(300, [4, 5, 6]), (511, [4, 5, 6]), (512, [106, 107, 108])])
    def test_turn_marks_have_gemmas_ids_where_they_fit(self, vocab_size: int, marks: list[int]) -> None:
        assert synthetic_tokenizer(vocab_size).encode("<start_of_turn><end_of_turn>\n") == marks

    @pytest.mark.parametrize("vocab_size", [300, 512, 25_000])
    def test_every_id_has_a_piece(self, vocab_size: int) -> None:
        tokenizer = synthetic_tokenizer(vocab_size)
        assert all(tokenizer.is_control(i) or tokenizer.token_bytes(i) for i in range(vocab_size))

    def test_is_the_same_each_time(self) -> None:
        first, second = synthetic_tokenizer(1000), synthetic_tokenizer(1000)
        assert [first.token_text(i) for i in range(1000)] == [second.token_text(i) for i in range(1000)]

    def test_words_are_pieces_and_digits_are_split(self) -> None:
        tokenizer = synthetic_tokenizer(3072)
        assert [tokenizer.token_text(i) for i in tokenizer.encode("bade cobi 2024")] == [
            *("bade", " cobi"),
            *(" ", "2", "0", "2", "4"),
        ]

    def test_too_few_ids_have_no_text(self) -> None:
        assert not synthetic_tokenizer(299).has_text


class TestLoading:
    def test_prefers_the_sentencepiece_model(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_bytes(hf_json())
        assert isinstance(load_tokenizer(tmp_path, 500), HFTokenizer)
        (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece())
        assert isinstance(load_tokenizer(tmp_path, 500), SentencePieceTokenizer)

    def test_without_files_there_are_only_ids(self, tmp_path: Path) -> None:
        assert isinstance(load_tokenizer(tmp_path, 500), TokenIdsOnly)

    @pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
    @pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
    def test_broken_file_is_named_with_the_fix(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name} is .*: download it again"):
            load_tokenizer(tmp_path, 500)

    @pytest.mark.parametrize(("name", "make"), [("tokenizer.model", train_sentencepiece), ("tokenizer.json", hf_json)])
    def test_more_pieces_than_the_model_has(self, tmp_path: Path, name: str, make: Callable[[], bytes]) -> None:
        (tmp_path / name).write_bytes(make())
        with pytest.raises(CheckpointError, match=rf"{name} has \d+ pieces, but the model's vocabulary only 64"):
            load_tokenizer(tmp_path, 64)

    def test_byte_level_pieces_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_bytes(hf_json(decoder=tokenizers.decoders.ByteLevel()))
        with pytest.raises(CheckpointError, match="byte-level"):
            load_tokenizer(tmp_path, 500)

    def test_missing_unknown_token_is_found_when_loading(self, tmp_path: Path) -> None:
        content = json.loads(hf_json())
        content["model"] |= {"unk_token": "<what>", "byte_fallback": False}
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer of the .*: download it again"):
            load_tokenizer(tmp_path, 500)

    def test_config_declares_control_tokens_and_bos(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_bytes(hf_json())
        declared = {"499": {"content": "<tool>", "special": True}, "498": {"content": "x", "special": False}}
        config = {"added_tokens_decoder": declared, "bos_token": {"content": "<pad>"}, "eos_token": "<eos>"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = load_tokenizer(tmp_path, 500)
        assert tokenizer.encode("<tool>") == [499]
        assert not tokenizer.is_control(498)
        assert tokenizer.bos_id == 0
        assert tokenizer.end_token_ids[0] == 1

    @pytest.mark.parametrize(
        "content", ["{", "[]", '{"added_tokens_decoder": {"x": 1}}', '{"added_tokens_decoder": 3}']
    )
    def test_broken_config_is_named(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
            load_tokenizer(tmp_path, 500)


def test_hf_truncation_is_switched_off() -> None:
    tokenizer = lossless("hf")
    assert tokenizer.decode(tokenizer.encode("the quick " * 20)) == "the quick " * 20
