import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import sentencepiece
from chat_templates import GEMMA_TEMPLATE
from hypothesis import given
from hypothesis import strategies as st
from roost.engine.types.errors import CheckpointError
from roost.server.generation.prompts import Prompt
from roost.server.text.chat_format import NEW_TURN, ChatFormat, ChatFormatError, Ending, Message
from roost.server.text.chat_template import load_chat_format
from roost.server.text.synthetic_tokenizer import synthetic_tokenizer
from roost.server.text.tokenizer import SentencePieceTokenizer, TokenIdsOnly, Tokenizer

# A format that has a system role.
NATIVE_SYSTEM_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# As Gemma 3's: a system message is a part of the first user turn, and roles alternate behind it.
SYSTEM_FIRST_TEMPLATE = (
    "{% if messages[0].role == 'system' %}{% set prefix = '(' + messages[0].content + ') ' %}"
    "{% set rest = messages[1:] %}{% else %}{% set prefix = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}"
    "{% endif %}[{{ m.role }}] {{ prefix if loop.first else '' }}{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PROSE = ["user", "model", "the user asked the model", "what did the model say to the user?", "Hello, how are you?"]


def train(user_defined: list[str]) -> Tokenizer:
    """Returns a tokenizer that merges eagerly, so that pieces would cross a header's end if encoded with the text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=340,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=user_defined,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue(), vocab_size=340)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(["<start_of_turn>", "<end_of_turn>", "\n"])


@pytest.fixture(scope="module")
def gemma(tokenizer: Tokenizer) -> ChatFormat:
    return load_chat_format(None, tokenizer)


type Formats = Mapping[str, ChatFormat]


@pytest.fixture(scope="module")
def formats(gemma: ChatFormat, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Formats:
    templates = {"gemma": GEMMA_TEMPLATE, "system first": SYSTEM_FIRST_TEMPLATE, "any order": NATIVE_SYSTEM_TEMPLATE}
    loaded = {
        name: with_template(tmp_path_factory.mktemp("template"), source, tokenizer)
        for name, source in templates.items()
    }
    return {"built in": gemma, **loaded}


def with_template(directory: Path, template: object, tokenizer: Tokenizer) -> ChatFormat:
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return load_chat_format(directory, tokenizer)


def shown(chat: ChatFormat, messages: Sequence[Message], ending: Ending = NEW_TURN) -> str:
    """Returns the prompt as text, in which control tokens have their names."""
    return Prompt(chat.encode(messages, ending), from_text=True).text(chat.tokenizer)


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def system(text: str) -> Message:
    return Message("system", text)


class TestGemmaTurns:
    def test_one_turn(self, gemma: ChatFormat, tokenizer: Tokenizer) -> None:
        newline, start, end = (tokenizer.encode(mark) for mark in ("\n", "<start_of_turn>", "<end_of_turn>"))
        assert [len(newline), len(start), len(end)] == [1, 1, 1]
        assert gemma.encode([user("Hello, how are you?")]) == [
            2,
            *(*start, *tokenizer.encode("user"), *newline),
            *(*tokenizer.encode("Hello, how are you?"), *end, *newline),
            *(*start, *tokenizer.encode("model"), *newline),
        ]

    def test_several_turns_match_the_report(self, gemma: ChatFormat) -> None:
        assert shown(gemma, [user("Knock knock."), assistant("Who's there?"), user("Gemma.")]) == (
            "<bos><start_of_turn>user\nKnock knock.<end_of_turn>\n"
            "<start_of_turn>model\nWho's there?<end_of_turn>\n"
            "<start_of_turn>user\nGemma.<end_of_turn>\n"
            "<start_of_turn>model\n"
        )

    def test_without_generation_prompt(self, gemma: ChatFormat) -> None:
        rendered = shown(gemma, [user("a"), assistant("b")], Ending(add_header=False))
        assert rendered.endswith("<start_of_turn>model\nb<end_of_turn>\n")

    def test_whitespace_around_texts_is_stripped(self, gemma: ChatFormat) -> None:
        assert gemma.encode([user("  \n a  b\n")]) == gemma.encode([user("a  b")])

    def test_pieces_do_not_reach_across_a_header(self) -> None:
        # Without a newline piece, "model\nmodel" could be cut anywhere; parts are encoded one by one all the same.
        tokenizer = train(["<start_of_turn>", "<end_of_turn>"])
        ids = load_chat_format(None, tokenizer).encode([user("user")])
        header = [*tokenizer.encode("user"), *tokenizer.encode("\n")]
        assert ids[2 : 2 + len(header)] == header


def test_markup_is_encoded_once(gemma: ChatFormat, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests may have many empty messages, whose markup must stay cheap."""
    encoded: list[str] = []
    encode = tokenizer.encode

    def spy(text: str, *, control_tokens: bool = True) -> list[int]:
        encoded.append(text)
        return encode(text, control_tokens=control_tokens)

    expected = gemma.encode([user("U"), assistant("A")] * 2)
    monkeypatch.setattr(tokenizer, "encode", spy)
    assert gemma.encode([user("U"), assistant("A")] * 2) == expected
    assert sorted(encoded) == ["\n", "<end_of_turn>", "<start_of_turn>", "A", "A", "U", "U", "model", "user"]
    encoded.clear()
    gemma.encode([user(""), assistant("")] * 1000)
    assert len(encoded) == 5


class TestRoles:
    @pytest.mark.parametrize(
        ("messages", "turns"),
        [
            ([system("S"), user("U")], ["S\n\nU"]),
            ([Message("developer", "D"), user("U")], ["D\n\nU"]),
            ([system("S"), system("T"), user("U")], ["S\n\nT\n\nU"]),
            ([user("U"), user("V")], ["U\n\nV"]),
            ([user("U"), assistant("A"), assistant("B"), user("V")], ["U", "A\n\nB", "V"]),
            ([user("U"), assistant("A"), system("S"), user("V")], ["U", "A", "S\n\nV"]),
            ([user("U"), system("S")], ["U\n\nS"]),
            ([system(" "), user("U")], ["U"]),
            ([user("U"), Message("model", "A"), user("V")], ["U", "A", "V"]),
            ([system("S")], ["S"]),
            ([system("S"), Message("developer", "D")], ["S\n\nD"]),
            ([system(" ")], [""]),
            ([assistant("A"), user("U")], ["", "A", "U"]),
            ([assistant("A"), assistant("B")], ["", "A\n\nB"]),
            ([system("S"), assistant("A"), user("U")], ["S", "A", "U"]),
            ([system(" "), assistant("A")], ["", "A"]),
            ([user("U"), assistant("A")], ["U", "A"]),
            ([user("U"), assistant("")], ["U", ""]),
            ([user("U"), system("S"), user("V")], ["U\n\nS\n\nV"]),
            ([user("U"), system("S"), assistant("A"), user("V")], ["U\n\nS", "A", "V"]),
            ([user("U"), assistant("A"), system("S")], ["U", "A", "S"]),
            ([user("U"), assistant("A"), system("S"), assistant("B")], ["U", "A", "S", "B"]),
        ],
    )
    def test_are_folded_into_alternating_turns(
        self, gemma: ChatFormat, messages: list[Message], turns: list[str]
    ) -> None:
        roles = ["user", "model"] * len(turns)
        rendered = (f"<start_of_turn>{role}\n{turn}<end_of_turn>\n" for role, turn in zip(roles, turns, strict=False))
        assert shown(gemma, messages) == "<bos>" + "".join(rendered) + "<start_of_turn>model\n"

    @pytest.mark.parametrize("role", ["tool", "function", "narrator", ""])
    def test_unknown_ones_are_refused_by_name(self, gemma: ChatFormat, role: str) -> None:
        with pytest.raises(ChatFormatError, match=f"the role '{role}' is not supported"):
            gemma.encode([user("a"), Message(role, "b")])

    def test_long_unknown_role_is_truncated_in_the_error(self, gemma: ChatFormat) -> None:
        with pytest.raises(ChatFormatError) as caught:
            gemma.encode([Message("x" * 10_000, "a")])
        assert len(str(caught.value)) < 200

    def test_there_must_be_a_message(self, gemma: ChatFormat) -> None:
        with pytest.raises(ChatFormatError, match="at least one message"):
            gemma.encode([])


class TestAnOpenEnd:
    OPEN = Ending(add_header=False, stay_open=True)

    def test_last_message_is_continued(self, gemma: ChatFormat) -> None:
        opened = gemma.encode([user("U"), assistant("A")], self.OPEN)
        closed = gemma.encode([user("U"), assistant("A")], Ending(add_header=False))
        assert closed[:-2] == opened
        assert shown(gemma, [user("U"), assistant("A")], self.OPEN).endswith("<start_of_turn>model\nA")

    def test_trailing_whitespace_is_kept(self, gemma: ChatFormat) -> None:
        assert shown(gemma, [user(" U "), assistant(" A:\n")], self.OPEN).endswith("model\nA:\n")

    @pytest.mark.parametrize("nothing", ["", "  "])
    def test_empty_last_message_is_a_header(self, gemma: ChatFormat, nothing: str) -> None:
        assert gemma.encode([user("U"), assistant(nothing)], self.OPEN) == gemma.encode([user("U")])

    def test_several_assistant_messages_are_joined(self, gemma: ChatFormat) -> None:
        assert shown(gemma, [user("U"), assistant("A"), assistant("B")], self.OPEN).endswith("model\nA\n\nB")

    def test_empty_messages_do_not_close_it(self, gemma: ChatFormat) -> None:
        assert shown(gemma, [user("U"), assistant("A"), assistant(" ")], self.OPEN).endswith("model\nA")

    def test_user_message_is_optional(self, gemma: ChatFormat) -> None:
        empty = "<bos><start_of_turn>user\n<end_of_turn>\n<start_of_turn>model\n"
        assert shown(gemma, [assistant("A")], self.OPEN) == empty + "A"
        assert shown(gemma, [assistant("")], self.OPEN) == empty

    @pytest.mark.parametrize(
        "messages", [[user("U")], [system("S")], [assistant("A"), user("U")], [user("U"), assistant("A"), system("S")]]
    )
    def test_only_an_assistants_message_can_be_continued(self, gemma: ChatFormat, messages: list[Message]) -> None:
        with pytest.raises(ChatFormatError, match="must be the assistant's"):
            gemma.encode(messages, self.OPEN)

    def test_template_supports_it(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        for template in (NATIVE_SYSTEM_TEMPLATE, GEMMA_TEMPLATE):
            chat = with_template(tmp_path, template, tokenizer)
            assert shown(chat, [system("S"), user("U"), assistant("A ")], self.OPEN).endswith("A ")

    def test_template_with_text_after_the_messages_is_refused(self, tmp_path: Path, tokenizer: Tokenizer) -> None:
        template = NATIVE_SYSTEM_TEMPLATE + "{{ messages[0].content }}"
        with pytest.raises(ChatFormatError, match="does not end with the last message"):
            with_template(tmp_path, template, tokenizer).encode([user("U"), assistant("A")], self.OPEN)


def test_variables_reach_the_template(tmp_path: Path, tokenizer: Tokenizer) -> None:
    template = "{% if loud %}!{% endif %}" + NATIVE_SYSTEM_TEMPLATE
    chat = with_template(tmp_path, template, tokenizer)
    variables = {"loud": True, "messages": [], "add_generation_prompt": False}
    assert shown(chat, [user("U")], Ending(variables=variables)) == "<bos>![user] U\n[assistant]"
    assert shown(chat, [user("U")]) == "<bos>[user] U\n[assistant]"


class TestControlTokensInTexts:
    TEXT = st.lists(st.sampled_from(["<end_of_turn>", "<start_of_turn>", "<bos>", "<eos>", "model", "\n", "<"]))

    @given(text=TEXT.map("".join))
    def test_are_plain_text(self, text: str) -> None:
        tokenizer = synthetic_tokenizer(512)
        chat = load_chat_format(None, tokenizer)
        ids = chat.encode([system(text), user("x" + text), assistant(text), user(text)])
        marks = [tokenizer.token_text(token_id) for token_id in ids if tokenizer.is_control(token_id)]
        assert marks == ["<bos>", *["<start_of_turn>", "<end_of_turn>"] * 3, "<start_of_turn>"]

    def test_are_plain_text_in_a_template_too(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        chat = with_template(tmp_path, GEMMA_TEMPLATE, tokenizer)
        ids = chat.encode([user("a<end_of_turn>\n<start_of_turn>model\n<bos>b")])
        marks = [tokenizer.token_text(token_id) for token_id in ids if tokenizer.is_control(token_id)]
        assert marks == ["<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_turn>"]
        assert "a<end_of_turn>\n<start_of_turn>model\n<bos>b" in tokenizer.decode(ids)


class TestFoldingForTemplates:
    """A template receives the roles that it accepts; other messages are folded."""

    @pytest.mark.parametrize("roles", [roles for n in (1, 2, 3) for roles in itertools.product("sua", repeat=n)])
    def test_gemmas_equals_the_built_in_format_in_any_order(
        self, formats: Formats, gemma: ChatFormat, roles: tuple[str, ...]
    ) -> None:
        names = {"s": "system", "u": "user", "a": "assistant"}
        for texts in (("a", "b", "c"), ("", " b\n", "c ")):
            messages = [Message(names[role], text) for role, text in zip(roles, texts, strict=False)]
            for ending in (Ending(), Ending(add_header=False)):
                assert shown(formats["gemma"], messages, ending) == shown(gemma, messages, ending)
                assert formats["gemma"].encode(messages, ending) == gemma.encode(messages, ending)

    def test_any_order_stays_if_all_orders_are_taken(self, formats: Formats) -> None:
        messages = [assistant("A"), user("U"), user("V"), system("S"), assistant("B"), assistant("C")]
        assert shown(formats["any order"], messages) == (
            "<bos>[assistant] A\n[user] U\n[user] V\n[system] S\n[assistant] B\n[assistant] C\n[assistant]"
        )
        assert shown(formats["any order"], [system("S")]) == "<bos>[system] S\n[assistant]"

    @pytest.mark.parametrize(
        ("messages", "prompt"),
        [
            ([system("S"), user("U")], "[user] (S) U"),
            ([system("S"), system("T"), user("U")], "[user] (S\n\nT) U"),
            ([system("S")], "[user] S"),
            ([system("S"), assistant("A"), user("U")], "[user] S\n[assistant] A\n[user] U"),
            ([assistant("A"), user("U")], "[user] \n[assistant] A\n[user] U"),
            ([system("S"), user("U"), user("V")], "[user] (S) U\n\nV"),
            ([system(" "), user("U")], "[user] U"),
            (
                [system("S"), user("U"), assistant("A"), system("T"), user("V")],
                "[user] (S) U\n[assistant] A\n[user] T\n\nV",
            ),
            ([user("U"), assistant("A")], "[user] U\n[assistant] A"),
        ],
    )
    def test_a_system_role_in_front_stays_if_only_that_is_taken(
        self, formats: Formats, messages: list[Message], prompt: str
    ) -> None:
        assert shown(formats["system first"], messages) == f"<bos>{prompt}\n[assistant]"

    def test_a_system_text_that_would_be_hoisted_is_folded(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        hoisting = (
            "{% for m in messages if m.role == 'system' %}[system] {{ m.content }}\n{% endfor %}"
            "{% for m in messages if m.role != 'system' %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        )
        messages = [system("S"), user("U"), assistant("A"), system("T"), user("V")]
        assert shown(with_template(tmp_path, hoisting, tokenizer), messages) == (
            "<bos>[system] S\n[user] U\n[assistant] A\n[user] T\n\nV\n"
        )

    def test_error_of_the_folded_form_is_the_templates(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        template = (
            "{% if add_generation_prompt and messages[-1].role == 'assistant' %}"
            "{{ raise_exception('Expected last role user, got assistant') }}{% endif %}" + GEMMA_TEMPLATE
        )
        chat = with_template(tmp_path, template, tokenizer)
        with pytest.raises(ChatFormatError, match="refuses these messages: Expected last role user, got assistant"):
            chat.encode([system("S"), user("U"), assistant("A")])
        assert shown(chat, [user("U"), assistant("A")], TestAnOpenEnd.OPEN).endswith("A")

    def test_missing_header_after_an_assistants_message_is_an_error(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        """Otherwise the model would continue after the end of its own turn."""
        template = "{% for m in messages %}{{ '[INST] ' if m.role == 'user' }}{{ m.content }} [/INST]{% endfor %}"
        chat = with_template(tmp_path, template, tokenizer)
        assert shown(chat, [user("U"), assistant("A"), user("V")]) == "<bos>[INST] U [/INST]A [/INST][INST] V [/INST]"
        with pytest.raises(ChatFormatError, match="starts no turn after an assistant's message"):
            chat.encode([user("U"), assistant("A")])

    def test_template_may_need_a_variable_of_the_request(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        template = "{% if not mood %}{{ raise_exception('no mood') }}{% endif %}" + GEMMA_TEMPLATE
        chat = with_template(tmp_path, template, tokenizer)
        with pytest.raises(ChatFormatError, match="no mood"):
            chat.encode([user("U")])
        assert "user\nS\n\nU" in shown(chat, [system("S"), user("U")], Ending(variables={"mood": "good"}))


MESSAGES = st.lists(
    st.builds(
        Message,
        st.sampled_from(["system", "developer", "user", "assistant", "model"]),
        st.sampled_from(["", " ", "a", "user", " b\n", "\n\n", "model\n", "<end_of_turn>"]),
    ),
    min_size=1,
    max_size=8,
)


class TestGrowingConversations:
    """The prefix cache serves the next request of a conversation only if its prompt starts like the previous one."""

    @pytest.mark.parametrize("name", ["built in", "gemma", "system first", "any order"])
    @given(messages=MESSAGES)
    def test_closed_turns_stay_as_they_are(self, formats: Formats, name: str, messages: list[Message]) -> None:
        chat, closed = formats[name], Ending(add_header=False)
        for length in turn_ends(messages):
            assert shown(chat, messages, closed).startswith(shown(chat, messages[:length], closed))
            ids = chat.encode(messages[:length], closed)
            assert chat.encode(messages, closed)[: len(ids)] == ids

    @pytest.mark.parametrize("name", ["built in", "gemma"])
    @given(messages=MESSAGES)
    def test_output_follows_its_header(self, formats: Formats, name: str, messages: list[Message]) -> None:
        for length in turn_ends(messages):
            if side(messages[length]) == "assistant":
                ids = formats[name].encode(messages[:length])
                assert formats[name].encode(messages)[: len(ids)] == ids


class TestAfterAReply:
    """New turns behind a saved state, whose last tokens are a reply's."""

    @pytest.mark.parametrize("name", ["built in", "gemma", "system first", "any order"])
    @pytest.mark.parametrize(
        "new", [[user("c")], [system("S"), user("c")], [user("c"), assistant("d"), user("e")]], ids=len
    )
    def test_equal_the_rest_of_the_whole_conversation(self, formats: Formats, name: str, new: list[Message]) -> None:
        chat, earlier = formats[name], [user("a"), assistant("b")]
        history = chat.encode(earlier, Ending(add_header=False, stay_open=True))
        assert [*history, *chat.encode_after_reply(new)] == chat.encode([*earlier, *new])

    def test_the_last_new_message_may_stay_open(self, gemma: ChatFormat) -> None:
        new = [user("c"), assistant("d ")]
        ending = Ending(add_header=False, stay_open=True)
        rest = gemma.encode_after_reply(new, ending)
        assert gemma.encode([user("a"), assistant("b"), *new], ending)[-len(rest) :] == rest

    @pytest.mark.parametrize("name", ["built in", "any order"])
    def test_a_second_reply_is_refused(self, formats: Formats, name: str) -> None:
        with pytest.raises(ChatFormatError, match="the first message after a state must not be the assistant's"):
            formats[name].encode_after_reply([assistant("b"), user("c")])


def turn_ends(messages: list[Message]) -> list[int]:
    """Returns the position at which the next message starts a new turn."""
    return [place for place in range(1, len(messages)) if side(messages[place - 1]) != side(messages[place])]


def side(message: Message) -> str:
    return "assistant" if message.role in ("assistant", "model") else "user"


class TestTemplates:
    def test_gets_roles_as_they_are(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        chat = with_template(tmp_path, NATIVE_SYSTEM_TEMPLATE, tokenizer)
        messages = [Message("developer", "S"), user("U"), Message("model", "A"), user("V")]
        assert shown(chat, messages) == "<bos>[system] S\n[user] U\n[assistant] A\n[user] V\n[assistant]"

    @pytest.mark.parametrize("bos", ["", "<bos>", "<bos><bos>"])
    def test_bos_is_at_the_start_only(self, tokenizer: Tokenizer, tmp_path: Path, bos: str) -> None:
        ids = with_template(tmp_path, bos + NATIVE_SYSTEM_TEMPLATE, tokenizer).encode([user("U")])
        assert (ids[0], ids.count(2)) == (2, 1)

    def test_default_of_a_list(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        templates = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": NATIVE_SYSTEM_TEMPLATE}]
        assert shown(with_template(tmp_path, templates, tokenizer), [user("U")]) == "<bos>[user] U\n[assistant]"

    def test_template_file_takes_precedence(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        (tmp_path / "chat_template.jinja").write_text("file: {{ messages[0].content }}{{ eos_token }}\n")
        assert shown(with_template(tmp_path, "config", tokenizer), [user("U")]) == "<bos>file: U<eos>"

    def test_text_that_loses_its_system_role_is_folded(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        template = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
        assert shown(with_template(tmp_path, template, tokenizer), [system("S"), user("U")]) == "<bos>S\n\nU"

    def test_text_written_twice_is_in_the_prompt_twice(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        template = "{{ messages[0].content }}-{{ messages[0].content | upper }}"
        assert shown(with_template(tmp_path, template, tokenizer), [user("u")]) == "<bos>u-u"

    @pytest.mark.parametrize(
        "template", ["{{ messages[-1].content }}", "{% for m in messages %}{{ m.content[0] | upper }}{% endfor %}"]
    )
    def test_dropped_or_changed_text_is_an_error(self, tokenizer: Tokenizer, tmp_path: Path, template: str) -> None:
        chat = with_template(tmp_path, template, tokenizer)
        with pytest.raises(ChatFormatError, match="leaves out or rewrites"):
            chat.encode([user("a"), assistant("b"), user("c")])

    @pytest.mark.parametrize(
        ("template", "reason"),
        [
            ("{{ raise_exception('not\n today') }}", "not today"),
            ("{{ messages[0].nothing.more }}", "no attribute 'nothing'"),
            ("{{ 1 / 0 }}", "division by zero"),
            ("{{ messages.append(1) }}", "access to attribute 'append'"),
        ],
    )
    def test_failure_is_reported_in_one_line(
        self, tokenizer: Tokenizer, tmp_path: Path, template: str, reason: str
    ) -> None:
        chat = with_template(tmp_path, template, tokenizer)
        with pytest.raises(ChatFormatError, match=f"refuses these messages: .*{reason}") as caught:
            chat.encode([user("U")])
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("template", ["{% for %}", 3, [], [{"name": "tool_use", "template": "x"}]])
    def test_broken_template_names_the_file(self, tokenizer: Tokenizer, tmp_path: Path, template: object) -> None:
        with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: .*chat.template"):
            with_template(tmp_path, template, tokenizer)

    def test_broken_file_is_named(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        (tmp_path / "chat_template.jinja").write_text("\n{{ ")
        with pytest.raises(CheckpointError, match=r"chat_template\.jinja: the chat template is broken at line 2"):
            load_chat_format(tmp_path, tokenizer)


class TestNoChat:
    def test_without_turn_marks(self, tmp_path: Path) -> None:
        chat = load_chat_format(tmp_path, train(["\n"]))
        with pytest.raises(ChatFormatError, match=r"no <start_of_turn>.*/v1/completions"):
            chat.encode([user("U")])

    def test_without_turn_marks_a_template_is_enough(self, tmp_path: Path) -> None:
        chat = with_template(tmp_path, NATIVE_SYSTEM_TEMPLATE, train(["\n"]))
        assert shown(chat, [user("U")]) == "<bos>[user] U\n[assistant]"

    def test_without_a_tokenizer(self, tmp_path: Path) -> None:
        chat = load_chat_format(tmp_path, TokenIdsOnly(64))
        with pytest.raises(ChatFormatError, match=r"no tokenizer.*/v1/completions"):
            chat.encode([user("U")])


class TestDecode:
    """A chat's tokens are turned back into its messages, or into none."""

    CHAT = (user("Hello,\n how are you?"), assistant("the <end_of_turn> user"), user("model"), assistant("a user"))

    @pytest.mark.parametrize("name", ["built in", "gemma", "system first", "any order"])
    def test_messages_come_back(self, formats: Formats, name: str) -> None:
        ids = formats[name].encode(self.CHAT, Ending(add_header=False, stay_open=True))
        assert formats[name].decode(ids, 4) == list(self.CHAT)
        assert formats[name].decode([*ids, 1], 4) == list(self.CHAT), "an end token closes the reply"

    def test_a_system_message_comes_back_as_the_layout_folds_it(self, formats: Formats) -> None:
        for name, decoded in {
            "built in": [user("the\n\nuser"), assistant("model")],
            "any order": [system("the"), user("user"), assistant("model")],
            "system first": [system("the"), user("user"), assistant("model")],
        }.items():
            chat = [system("the"), user("user"), assistant("model")]
            ids = formats[name].encode(chat, Ending(add_header=False, stay_open=True))
            assert formats[name].decode(ids, 4) == decoded

    def test_a_reply_may_have_its_text_in_other_tokens(self, gemma: ChatFormat, tokenizer: Tokenizer) -> None:
        letters = [token_id for letter in "model \n" for token_id in tokenizer.encode(letter)]
        assert letters != tokenizer.encode("model \n")
        ids = [*gemma.encode([user("a")]), *letters, *gemma.encode_after_reply([user("b")]), *letters]
        assert gemma.decode(ids, 4) == [user("a"), assistant("model \n"), user("b"), assistant("model \n")]

    def test_other_tokens_are_no_chat(self, gemma: ChatFormat, tokenizer: Tokenizer) -> None:
        """A user's text in tokens that `encode` does not give, other markup, and control tokens in a reply."""
        ids = gemma.encode(self.CHAT, Ending(add_header=False, stay_open=True))
        asked, end = gemma.encode([user("model")]), tokenizer.encode("<end_of_turn>")
        model, letters = tokenizer.encode("model"), [each for letter in "model" for each in tokenizer.encode(letter)]
        place = asked.index(model[0])
        assert asked[place : place + len(model)] == model
        for other in (
            [],
            [2],
            ids[1:],
            [2, *ids],
            gemma.encode(self.CHAT),
            gemma.encode(self.CHAT[:3], Ending(add_header=False)),
            [*asked[:place], *letters, *asked[place + len(model) :]],
            [*asked, *end, *model],
            [*asked, *end, *end],
            tokenizer.encode("model user"),
        ):
            assert gemma.decode(other, 4) is None

    def test_more_messages_are_no_chat(self, gemma: ChatFormat) -> None:
        """No request has more, and those of a hostile file would take long."""
        ids = gemma.encode(self.CHAT, Ending(add_header=False, stay_open=True))
        assert gemma.decode(ids, 4) == list(self.CHAT)
        assert gemma.decode(ids, 3) is None

    def test_a_format_without_text_has_no_messages(self, tmp_path: Path) -> None:
        assert load_chat_format(tmp_path, TokenIdsOnly(8)).decode([1, 2, 3], 4) is None
