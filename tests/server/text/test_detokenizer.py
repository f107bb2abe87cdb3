import codecs
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from roost.server.text.detokenizer import Detokenizer
from roost.server.text.synthetic_tokenizer import synthetic_tokenizer
from roost.server.text.tokenizer import HFTokenizer, SentencePieceTokenizer, TokenIdsOnly, Tokenizer
from sweeps import examples
from tokenizer_files import hf_json, train_sentencepiece
from tokenizers import decoders, normalizers, pre_tokenizers

TOKENIZER = synthetic_tokenizer(512)
BYTES = [TOKENIZER.token_bytes(token_id) for token_id in range(TOKENIZER.vocab_size)]


def reference(text: str, stop: Sequence[str], include_stop: bool) -> tuple[str, str | None]:
    """Returns the whole text up to the stop string that ends first; of several ending there, the longest."""
    for end in range(len(text) + 1):
        found = [string for string in stop if text[:end].endswith(string)]
        if found:
            longest = max(found, key=len)
            return text[: end if include_stop else end - len(longest)], longest
    return text, None


def pushes(ids: Sequence[int], cuts: Sequence[int]) -> list[Sequence[int]]:
    borders = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    return [ids[start:end] for start, end in itertools.pairwise(borders)]


def stream(detokenizer: Detokenizer, chunks: Sequence[Sequence[int]]) -> list[str]:
    return [*map(detokenizer.push, chunks), detokenizer.finish()]


def byte_id(byte: int) -> int:
    return BYTES.index(bytes([byte]))


def encode(segments: Sequence[str | int]) -> list[int]:
    """Returns the token ids of texts and single ids, one after the other."""
    parts = (TOKENIZER.encode(part) if isinstance(part, str) else [part] for part in segments)
    return list(itertools.chain.from_iterable(parts))


# Family (four emoji joined by ZWJ), flag (two code points), skin tone, CJK, combining accent.
SCRIPTS = ["👩‍👩‍👧‍👦", "🇪🇺", "👍🏽", "日本語", "e\u0301", "ab", "aab", "\n", " ", "�"]
STRAY_BYTES = [byte_id(byte) for byte in (0xF0, 0x9F, 0x80, 0xE2, 0xC0, 0xED, 0xA0, 0xFF)]
SEGMENTS = st.lists(
    st.one_of(st.sampled_from(SCRIPTS), st.sampled_from(STRAY_BYTES), st.integers(0, TOKENIZER.vocab_size - 1)),
    max_size=16,
)
STOPS = st.lists(st.text("ab\n 日本語\u200d👩👍�", min_size=1, max_size=4), max_size=4)
CUTS = st.lists(st.integers(0, 1000), max_size=30)


class TestAnySplit:
    @examples(100, sweep=2000)
    @given(segments=SEGMENTS, stop=STOPS, cuts=CUTS, include_stop=st.booleans())
    @example(segments=["aabaab"], stop=["aab", "ab"], cuts=[1, 2], include_stop=False)
    @example(segments=["xabcdef"], stop=["abcdef", "cd"], cuts=[2], include_stop=False)  # the first complete one
    @example(segments=["xabcd"], stop=["cd", "abcd", "d"], cuts=[], include_stop=False)  # the longest one
    @example(segments=["x.\ny"], stop=[".\n"], cuts=[], include_stop=True)
    def test_joined_deltas_equal_the_whole(
        self, segments: list[str | int], stop: list[str], cuts: list[int], include_stop: bool
    ) -> None:
        ids = encode(segments)
        detokenizer = Detokenizer(TOKENIZER, stop, include_stop=include_stop)
        joined = "".join(stream(detokenizer, pushes(ids, cuts)))
        assert (joined, detokenizer.stop_string) == reference(TOKENIZER.decode(ids), stop, include_stop)

    @examples(60, sweep=1000)
    @given(text=st.text("abc", max_size=30), stop=st.lists(st.text("abc", min_size=1, max_size=5), min_size=1))
    def test_only_a_prefix_of_a_stop_string_is_held_back(self, text: str, stop: list[str]) -> None:
        detokenizer = Detokenizer(TOKENIZER, stop)
        sent = ""
        for end, token_id in enumerate(encode(list(text)), start=1):
            sent += detokenizer.push([token_id])
            if detokenizer.stop_string is not None:
                return
            beginnings = {string[:length] for string in stop for length in range(1, len(string))}
            held = max((len(b) for b in beginnings if text[:end].endswith(b)), default=0)
            assert sent == text[: end - held]

    @examples(60, sweep=1000)
    @given(text=st.lists(st.sampled_from(SCRIPTS[:-1])).map("".join))
    def test_no_delta_has_half_a_character(self, text: str) -> None:
        deltas = stream(Detokenizer(TOKENIZER), [[token_id] for token_id in TOKENIZER.encode(text)])
        assert not any("�" in delta for delta in deltas)
        assert "".join(deltas) == text

    @examples(100, sweep=2000)
    @given(segments=SEGMENTS, stop=STOPS, cuts=CUTS, include_stop=st.booleans())
    @example(segments=["aab"], stop=["b"], cuts=[], include_stop=False)
    def test_num_sent_counts_tokens_whose_text_was_returned(
        self, segments: list[str | int], stop: list[str], cuts: list[int], include_stop: bool
    ) -> None:
        """Holds at any time, however the ids are grouped into pushes."""
        ids = encode(segments)
        detokenizer = Detokenizer(TOKENIZER, stop, include_stop=include_stop)
        given_text, num_pushed = "", 0
        for push in pushes(ids, cuts):
            given_text += detokenizer.push(push)
            num_pushed += len(push)
            self.check_count(detokenizer, ids[:num_pushed], given_text, is_over=detokenizer.stop_string is not None)
        given_text += detokenizer.finish()
        self.check_count(detokenizer, ids, given_text, is_over=True)
        if detokenizer.stop_string is None:
            assert detokenizer.num_sent == len(ids)

    @staticmethod
    def check_count(detokenizer: Detokenizer, ids: list[int], given_text: str, *, is_over: bool) -> None:
        text = TOKENIZER.decode(ids)
        ends = [0]
        for end in range(1, len(ids) + 1):
            data = b"".join(map(TOKENIZER.token_bytes, ids[:end]))
            whole = codecs.getincrementaldecoder("utf-8")("replace").decode(data)
            ends.append(len(whole) + (len(data.decode("utf-8", "replace")) > len(whole)))
        assert text.startswith(given_text)
        whole_tokens = [count for count, end in enumerate(ends) if end <= len(given_text)]
        assert detokenizer.num_sent <= whole_tokens[-1]
        assert ends[detokenizer.num_sent] <= len(given_text)
        if not (is_over and detokenizer.stop_string is not None):
            assert detokenizer.num_sent == whole_tokens[-1]
        else:  # tokens that came together with the stop string, or after it, may have no text
            assert ends[detokenizer.num_sent] == ends[whole_tokens[-1]]


class Prefixing(NamedTuple):
    """Returns a tokenizer that adds a dummy prefix, and its library's decoder, which removes one.

    A newline gets no prefix if it is a token that the library splits off first.
    """

    ours: Tokenizer
    library_decode: Callable[[list[int]], str]


def from_sentencepiece(**options: Any) -> Prefixing:
    model = train_sentencepiece(add_dummy_prefix=True, **options)
    return Prefixing(SentencePieceTokenizer(model, 500), sentencepiece.SentencePieceProcessor(model_proto=model).decode)


def from_json(data: bytes) -> Prefixing:
    return Prefixing(HFTokenizer(data, 500), tokenizers.Tokenizer.from_buffer(data).decode)


def prepending_json() -> bytes:
    """Returns a tokenizer like Llama's: a normalizer that prepends, a decoder that strips."""
    decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return hf_json(decoder, normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]))


def metaspace_json() -> bytes:
    """Returns a tokenizer like T5's: the pre-tokenizer prepends."""
    decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("▁", "always")])
    return hf_json(decoder, pre_tokenizer=pre_tokenizers.Metaspace("▁", "always"))


PREFIXING: dict[str, Callable[[], Prefixing]] = {
    "sentencepiece": from_sentencepiece,
    "sentencepiece without bytes": lambda: from_sentencepiece(byte_fallback=False, vocab_size=80, unk_surface=""),
    "json, normalizer": lambda: from_json(prepending_json()),
    "json, pre-tokenizer": lambda: from_json(metaspace_json()),
}


@functools.cache
def prefixing(kind: str) -> Prefixing:
    return PREFIXING[kind]()


@pytest.mark.parametrize("kind", PREFIXING)
class TestTokenizersThatPrefix:
    @examples(30, sweep=600)
    @given(ids=st.lists(st.integers(0, 499), max_size=24), stop=STOPS, cuts=CUTS)
    def test_joined_deltas_equal_the_whole_for_any_ids(
        self, kind: str, ids: list[int], stop: list[str], cuts: list[int]
    ) -> None:
        tokenizer = prefixing(kind).ours
        detokenizer = Detokenizer(tokenizer, stop)
        joined = "".join(stream(detokenizer, pushes(ids, cuts)))
        assert (joined, detokenizer.stop_string) == reference(tokenizer.decode(ids), stop, include_stop=False)

    @examples(30, sweep=600)
    @given(text=st.lists(st.sampled_from([*SCRIPTS[:-1], "river", " river", "the"])).map("".join), cuts=CUTS)
    @example(text=" river", cuts=[])
    def test_text_decodes_like_the_library(self, kind: str, text: str, cuts: list[int]) -> None:
        """Only a leading space stays: within a conversation it is a space like any other."""
        tokenizer, library_decode = prefixing(kind)
        ids = tokenizer.encode(text, control_tokens=False)
        joined = "".join(stream(Detokenizer(tokenizer), pushes(ids, cuts)))
        assert joined.removeprefix(" ") == library_decode(ids)
        assert joined.startswith((" ", "\n")) or not text

    @examples(20, sweep=200)
    @given(text=st.lists(st.sampled_from(["river", " ", "the", "a", "\n"])).map("".join), cut=st.integers(0, 99))
    def test_output_keeps_its_leading_space(self, kind: str, text: str, cut: int) -> None:
        """Prompt and output, decoded separately, join to the whole text, wherever the output starts."""
        tokenizer = prefixing(kind).ours
        ids = tokenizer.encode(text)
        start = cut % (len(ids) + 1)
        answer = "".join(stream(Detokenizer(tokenizer), [[token_id] for token_id in ids[start:]]))
        assert tokenizer.decode(ids[:start]) + answer == tokenizer.decode(ids)


class TestUtf8:
    def test_character_comes_with_its_last_byte(self) -> None:
        detokenizer = Detokenizer(TOKENIZER)
        assert [detokenizer.push([token_id]) for token_id in TOKENIZER.encode("🙂")] == ["", "", "", "🙂"]

    def test_replacement_may_complete_a_stop_string(self) -> None:
        detokenizer = Detokenizer(TOKENIZER, ["�"])
        assert detokenizer.push([*TOKENIZER.encode("a"), byte_id(0xE2)]) == "a"
        assert (detokenizer.finish(), detokenizer.stop_string) == ("", "�")


def test_tokens_without_text_have_none() -> None:
    assert stream(Detokenizer(TokenIdsOnly(8), ["a"]), [[1, 2], [3]]) == ["", "", ""]


def test_cost_of_a_token_does_not_grow_with_the_text() -> None:
    stop = "a" * 5000 + "b"  # the worst case: everything may be its beginning
    detokenizer = Detokenizer(TOKENIZER, [stop])
    ids = TOKENIZER.encode("a")
    start = time.process_time()
    for _ in range(20_000):
        detokenizer.push(ids)
    assert time.process_time() - start < 10  # about 0.1 s; quadratic work would take minutes
