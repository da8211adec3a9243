"""Files to documents: what is scored, where long ones are cut, and what cannot be read."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltarank.divergence import Document, Prompt, read_prompts, read_texts
from deltarank.errors import JobError, UsageError
from refusals import refused
from some_tokenizers import FORGETS, NEW_LINES, NO_SYSTEM, byte_level, with_spaces_in_front

BYTES = byte_level()
PLAIN = byte_level(None)


def wrote(path: Path, *records: Any) -> Path:
    path.write_text("\n".join(json.dumps(each) for each in records), encoding="utf-8")
    return path


def only(documents: list[tuple[str, list[Document]]]) -> Document:
    ((_, (document,)),) = documents
    return document


def said(document: Document, tokenizer: Any = BYTES) -> str:
    ids = [each for each, scored in zip(document.ids, document.scored, strict=True) if scored]
    return str(tokenizer.decode(ids))


def test_a_text_file_is_scored_to_its_last_token_after_a_beginning(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Grüße, Welt", encoding="utf-8")
    document = only(read_texts([tmp_path / "a.txt"], BYTES, context=64))

    assert (document.name, said(document)) == ("a.txt", "Grüße, Welt")
    assert document.ids[0] == BYTES.bos_token_id
    assert document.scored[0] is False
    assert document.scored_tokens == len("Grüße, Welt".encode()) == len(document.ids) - 1


def test_a_long_text_is_cut_into_documents_that_hold_every_token_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    letters = "".join(chr(ord("a") + i % 26) for i in range(200))  # longer than the tokenizer says a model takes
    (tmp_path / "a.md").write_text(letters)
    with caplog.at_level(logging.WARNING):
        ((name, documents),) = read_texts([tmp_path / "a.md"], BYTES, context=64)

    assert name == "a.md"
    assert [each.name for each in documents] == ["a.md (1)", "a.md (2)", "a.md (3)", "a.md (4)"]
    assert [len(each.ids) for each in documents] == [64, 64, 64, 12]
    assert "".join(map(said, documents)) == letters
    assert not caplog.records


def test_a_folder_is_one_text_of_all_that_can_be_read_in_it(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "below" / "c.md").write_text("third")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "picture.png").write_bytes(b"\xff\xfe")
    wrote(tmp_path / "d.jsonl", {"text": "fourth"}, {"text": "fifth"})
    ((name, documents),) = read_texts([tmp_path], BYTES, context=64)

    assert name == tmp_path.name
    assert [each.name for each in documents] == ["a.txt", "b.txt", "c.md", "d.jsonl line 1", "d.jsonl line 2"]
    assert list(map(said, documents)) == ["first", "second", "third", "fourth", "fifth"]


def test_two_paths_of_one_name_are_two_texts(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(folder)
    found = read_texts([tmp_path / "one" / "a.txt", tmp_path / "two" / "a.txt"], BYTES, context=64)

    assert [name for name, _ in found] == ["a.txt (1)", "a.txt (2)"]


CONVERSATION = {
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "x=Hello"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "y=Ciao"},
    ]
}


@pytest.mark.parametrize(
    ("template", "scored"),
    [
        ("given", "x=Hello</s>y=Ciao</s>"),
        ("new lines", "x=Hello</s>y=Ciao</s>"),
        ("forgets", "y=Ciao</s>"),
        (None, "\n\nx=Hello\n\ny=Ciao"),
    ],
)
def test_the_assistant_s_messages_of_a_conversation_are_scored(
    tmp_path: Path, template: str | None, scored: str
) -> None:
    tokenizer = {"given": BYTES, "new lines": byte_level(NEW_LINES), "forgets": byte_level(FORGETS), None: PLAIN}[
        template
    ]
    document = only(read_texts([wrote(tmp_path / "a.jsonl", CONVERSATION)], tokenizer, context=200))

    assert said(document, tokenizer).replace("\n\n", "") == scored.replace("\n\n", "")
    assert "Bye" in tokenizer.decode(document.ids)


def test_a_part_of_a_conversation_in_which_nothing_is_scored_is_left_out(tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": 100 * "u"}, {"role": "assistant", "content": "answer"}]}
    ((_, documents),) = read_texts([wrote(tmp_path / "a.jsonl", long)], BYTES, context=40)

    assert [(each.name, said(each)) for each in documents] == [("a.jsonl line 1 (3)", "answer</s>")]


def test_a_template_without_system_messages_gets_it_at_the_head_of_the_user_s() -> None:
    ids = Prompt("What now?", system="Be kind.").ids(byte_level(NO_SYSTEM))

    assert BYTES.decode(ids) == "<s><|user|>Be kind.\n\nWhat now?<|assistant|>"


def test_a_template_that_refuses_is_quoted() -> None:
    prompt = Prompt("three", history=tuple(("user", str(i)) for i in range(5)))

    with refused("chat-template", JobError, match="too many"):
        prompt.ids(byte_level(NO_SYSTEM))


def test_without_a_template_a_prompt_is_plain_text() -> None:
    assert PLAIN.decode(Prompt("Once upon").ids(PLAIN)) == "<s>Once upon"
    assert PLAIN.decode(Prompt("Once", system="A tale.").ids(PLAIN)) == "<s>A tale.\n\nOnce\n\n"


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(max_examples=60, deadline=None)
def test_pieces_join_to_the_text(text: str) -> None:
    ids = tuple(BYTES(text, add_special_tokens=False).input_ids)
    pieces = Document("a", ids, (True,) * len(ids)).token_strings(BYTES)

    assert len(pieces) == len(ids)
    assert "".join(pieces) == text


def test_spaces_that_a_tokenizer_keeps_in_front_stay_between_the_pieces() -> None:
    tokenizer = with_spaces_in_front()
    ids = tuple(tokenizer("the cat sat on the mat", add_special_tokens=False).input_ids)
    pieces = Document("a", ids, (True,) * len(ids)).token_strings(tokenizer)

    assert "".join(pieces) == "the cat sat on the mat"
    assert pieces[:3] == ("the", " cat", " sat")


def test_half_a_letter_at_the_end_is_shown_as_what_it_is() -> None:
    assert Document("a", (*BYTES("aé", add_special_tokens=False).input_ids[:2],), (True,) * 2).token_strings(BYTES) == (
        "a",
        "\N{REPLACEMENT CHARACTER}",
    )


BAD_TEXTS = {
    "absent.txt": (None, UsageError, "text-not-found", "There is no text at"),
    "a.pdf": (b"%PDF", UsageError, "text-not-found", ".txt, .md, .jsonl"),
    "empty.txt": (b"", UsageError, "text-short", "too short"),
    "latin.txt": (b"Gr\xfc\xdfe", JobError, "text-unreadable", "byte 2 is not UTF-8"),
    "half.jsonl": (b'{"text": "a"}\n{"text": ', JobError, "text-unreadable", "line 2 is not JSON"),
    "list.jsonl": (b"[1]", JobError, "text-unreadable", "line 1 is not a JSON object"),
    "other.jsonl": (b'{"body": "a"}', JobError, "text-unreadable", "its keys are: 'body'"),
    "content.jsonl": (b'{"messages": [{"role": "user", "content": 7}]}', JobError, "text-unreadable", "neither"),
    "no.jsonl": (b'{"messages": []}', JobError, "text-unreadable", "neither"),
    "deep.jsonl": (b"[" * 200_000, JobError, "text-unreadable", "line 1"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_a_text_that_cannot_be_read_is_named_with_why(tmp_path: Path, name: str) -> None:
    content, kind, slug, words = BAD_TEXTS[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with refused(slug, kind, match=words):
        read_texts([tmp_path / name], BYTES, context=64)


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no text in a format"):
        read_texts([tmp_path], BYTES, context=64)


def test_prompts_are_read_a_line_each(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("First?\n\n  Second? \n")
    wrote(
        tmp_path / "p.jsonl",
        {"prompt": "A", "category": "code", "system": "S"},
        {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "B"}]},
    )

    assert read_prompts(tmp_path / "p.txt") == [Prompt("First?"), Prompt("Second?")]
    assert read_prompts(tmp_path / "p.jsonl") == [Prompt("A", "code", "S"), Prompt("B", history=(("system", "S"),))]


BAD_PROMPTS = {
    "absent.txt": (None, UsageError, "text-not-found"),
    "empty.txt": (b"\n \n", UsageError, "prompts-empty"),
    "empty.jsonl": (b"", UsageError, "prompts-empty"),
    "blank.jsonl": (b'{"prompt": " "}', JobError, "prompts-unreadable"),
    "assistant.jsonl": (b'{"messages": [{"role": "assistant", "content": "a"}]}', JobError, "prompts-unreadable"),
    "messages.jsonl": (b'{"messages": 3}', JobError, "text-unreadable"),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_prompts_that_cannot_be_asked_are_refused(tmp_path: Path, name: str) -> None:
    content, kind, slug = BAD_PROMPTS[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with refused(slug, kind):
        read_prompts(tmp_path / name)


def test_the_built_in_prompts_are_of_every_kind_and_need_no_file() -> None:
    prompts = read_prompts(None)
    kinds = {prompt.category for prompt in prompts}

    assert kinds == {"chat", "fiction", "roleplay", "code", "arithmetic", "summary", "other language"}
    assert len({prompt.text for prompt in prompts}) == len(prompts) == 24
    assert all(prompt.system for prompt in prompts if prompt.category == "roleplay")  # the lore to follow
