"""The parts of a calibration: the divergence with its gradient, the split of the documents, the size of a step."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from deltarank.demo.model import tokenizer
from deltarank.demo.recipe import Recipe
from deltarank.jobs.calibrate.documents import encode, other_records, split_records
from deltarank.jobs.calibrate.kl import common_tokens, expected_weights, kl_divergence, kl_gradient
from deltarank.jobs.calibrate.schedule import LARGEST_STEP, step_size
from deltarank.jobs.calibrate.texts import content_of, passages, read_records_of
from deltarank.models import Head
from refusals import refused

TOKENIZER = tokenizer(Recipe())


def divergence_and_gradient(teacher, teacher_head, student, student_head):
    common = common_tokens(teacher, teacher_head, student, student_head)
    expected = expected_weights(teacher, teacher_head, student_head, common)
    nats = kl_divergence(teacher, teacher_head, student, student_head)
    return nats, kl_gradient(expected, student, student_head, common)


class TestDivergence:
    @pytest.mark.parametrize("vocabularies", [(50, 50), (50, 47), (47, 50)])
    @pytest.mark.parametrize("tokens", [1, 9])
    def test_value_and_gradient_are_those_of_autograd_in_float64(self, vocabularies, tokens):
        torch.manual_seed(0)
        weights = [torch.randn(words, 8) for words in vocabularies]
        teacher, student = torch.randn(tokens, 8), torch.randn(tokens, 8)
        nats, gradient = divergence_and_gradient(teacher, Head(weights[0]), student, Head(weights[1]))
        exact = student.double().requires_grad_()
        common = min(vocabularies)
        log_p, log_q = (
            log_softmax((inputs @ weight.double().T)[:, :common], -1)
            for inputs, weight in ((teacher.double(), weights[0]), (exact, weights[1]))
        )
        loss = kl_div(log_q, log_p, log_target=True, reduction="sum")
        loss.backward()
        assert nats == pytest.approx(loss.item(), rel=1e-5)
        torch.testing.assert_close(gradient.double(), exact.grad, rtol=1e-4, atol=1e-6)

    def test_of_logits_the_gradient_is_q_minus_p(self):
        torch.manual_seed(0)
        teacher, student = torch.randn(3, 20), torch.randn(3, 20)
        _, gradient = divergence_and_gradient(teacher, Head(None), student, Head(None))
        torch.testing.assert_close(gradient, student.softmax(-1) - teacher.softmax(-1))

    def test_equal_predictions_have_no_divergence_and_no_gradient(self):
        head, inputs = Head(torch.randn(30, 4)), torch.randn(5, 4)
        nats, gradient = divergence_and_gradient(inputs, head, inputs, head)
        assert nats == 0
        assert not gradient.any()


def records(number: int, words: int = 40) -> list[dict[str, str]]:
    return [{"text": f"document {i} " + " ".join(f"word{i * j % 97}" for j in range(words))} for i in range(number)]


def split(*args, tokens: int = 10**6, seed: int = 0):
    return split_records(*args, TOKENIZER, tokens=tokens, context=2048, seed=seed)


class TestSplit:
    def test_no_document_is_in_two_parts_and_none_is_lost(self):
        parts = split(records(40))
        texts = [[record["text"] for record in part] for part in vars(parts).values()]
        assert all(not set(a) & set(b) for a, b in itertools.combinations(texts, 2))
        assert sorted(itertools.chain(*texts)) == sorted(record["text"] for record in records(40))
        assert [len(part) for part in texts] == [24, 8, 8]

    def test_a_document_that_is_there_twice_counts_once(self):
        parts = split(records(20) * 3)
        assert sum(map(len, vars(parts).values())) == 20

    @pytest.mark.parametrize(
        "again",
        [
            lambda text: {"text": text.replace(" ", "  \n")},
            lambda text: {"text": text.upper()},
            lambda text: {"text": text, "messages": [{"role": "user", "content": "ignored"}]},
            lambda text: {
                "messages": [{"role": "user", "content": text[:9]}, {"role": "assistant", "content": text[9:]}]
            },
            lambda text: {"text": text, "group": "a group"},
        ],
    )
    def test_no_duplicate_of_a_document_is_in_another_part(self, again):
        """Also one that differs in white space, case, roles, keys that are not read, or group."""
        originals = records(30)
        parts = split([*originals, *(again(record["text"]) for record in originals[:10])])
        contents = [{content_of(record) for record in part} for part in vars(parts).values()]
        assert all(not a & b for a, b in itertools.combinations(contents, 2))
        assert sum(map(len, vars(parts).values())) == sum(map(len, contents)) == 30

    def test_documents_that_the_base_cannot_read_are_left_out(self):
        readable = records(30)
        parts = split_records(
            [*readable, *({"text": f"{record['text']} <|pad|>"} for record in readable)],
            TOKENIZER,
            tokens=10**6,
            context=2048,
            seed=0,
            vocabulary=258,
        )
        assert sum(map(len, vars(parts).values())) == 30

    def test_the_built_in_passages_which_are_only_scored_neither_fit_nor_choose(self):
        assert split([*records(30), *other_records()]) == split(records(30))
        with refused("text-short", match="are left out, because they are built-in passages"):
            split(other_records())

    def test_documents_of_one_group_stay_together(self):
        grouped = [{**record, "group": str(i // 4)} for i, record in enumerate(records(48))]
        where = {}
        for name, part in vars(split(grouped)).items():
            for record in part:
                where.setdefault(record["group"], set()).add(name)
        assert len(where) == 12
        assert all(len(parts) == 1 for parts in where.values())

    def test_it_does_not_depend_on_the_order_of_the_documents_and_does_on_the_seed(self):
        assert split(records(30)) == split(records(30)[::-1])
        assert split(records(30)) != split(records(30), seed=1)

    def test_documents_are_taken_until_there_are_enough_tokens(self):
        parts = split(records(200), tokens=3000)
        used = [record for part in vars(parts).values() for record in part]
        tokens = [sum(len(d.ids) for d in encode(record, TOKENIZER, context=2048)) for record in used]
        assert sum(tokens) - max(tokens) < 3000 <= sum(tokens)

    def test_too_few_documents_or_tokens_are_refused(self):
        with refused("text-short"):
            split(records(7, 400))
        with refused("text-short"):
            split([{"text": f"word {i}"} for i in range(30)])

    def test_it_is_said_why_texts_do_not_count(self):
        questions = [{"messages": [{"role": "user", "content": record["text"]}]} for record in records(30)]
        with refused("text-short", match="30 texts are left out, because nothing in them can be scored"):
            split(questions)

    def test_texts_of_one_token_are_left_out_and_the_others_are_used(self):
        """The tokenizer is one of bytes, after a first token, alone with which nothing can be scored."""
        assert split([*records(20), {"text": ""}]) == split(records(20))
        with refused("text-short", match=r"0 different documents, 0 tokens.* 1 text is left out"):
            split([{"text": ""}])
        with refused("text-short", match="10 different documents, 10 tokens to score"):
            split([{"text": letter} for letter in "abcdefghij"])

    def test_copies_of_a_few_documents_are_too_few(self):
        with refused("text-short", match="3 different documents"):
            split(records(3, 400) * 50)


class TestPassages:
    @pytest.mark.parametrize(
        "text",
        [
            "One paragraph.\n\nAnother one.\n" * 100,
            "One long paragraph without any break. " * 200,
            "nobreaksatall" * 500,
            "Zeile eins.\r\n\r\nZeile zwei.\r\n" * 80,
        ],
    )
    def test_together_they_have_every_character_and_none_is_too_long(self, text):
        pieces = list(passages(text))
        assert "".join("".join(pieces).split()) == "".join(text.split())
        assert all(0 < len(piece) <= 1300 for piece in pieces)

    def test_a_folder_gives_the_documents_of_all_its_files(self, tmp_path: Path):
        (tmp_path / "a.txt").write_text("First text.\n")
        (tmp_path / "b.jsonl").write_text(json.dumps({"text": "Second text."}) + "\n")
        assert [record["text"] for record in read_records_of([tmp_path])] == ["First text.", "Second text."]

    def test_a_text_that_is_repeated_in_a_file_is_read_once(self, tmp_path: Path):
        """Its passages would be cut at other places each time, and would land in different parts."""
        text = "".join(f"Paragraph {i} of a text that is there a thousand times.\n\n" * 1 for i in range(30))
        (tmp_path / "a.txt").write_text(text * 1000)
        read = "".join(record["text"] for record in read_records_of([tmp_path]))
        assert read.count("Paragraph 7 of") == 1

    def test_of_a_line_nothing_but_its_text_is_read_and_the_passages_of_one_stay_together(self, tmp_path: Path):
        long = " ".join(f"Sentence number {i}." for i in range(10_000))
        lines = [
            {"text": "short", "group": 1, "id": 5},
            {"text": long},
            {"messages": [{"role": "user", "content": "a"}]},
        ]
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        short, *pieces, chat = read_records_of([tmp_path])
        assert short == {"text": "short"}
        assert chat == {"messages": [{"role": "user", "content": "a"}]}
        assert len({piece["group"] for piece in pieces}) == 1
        assert 8_000 < sum(len(piece["text"]) for piece in pieces) < 10_000

    def test_half_of_a_surrogate_pair_is_replaced(self, tmp_path: Path):
        (tmp_path / "a.jsonl").write_text('{"text": "cut \\ud83d"}\n')
        [record] = read_records_of([tmp_path])
        assert record["text"] == "cut \N{REPLACEMENT CHARACTER}"

    def test_a_line_that_is_no_document_is_named(self, tmp_path: Path):
        (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"prompt": "bad"}\n')
        with refused("text-unreadable", match=r"a\.jsonl line 2"):
            read_records_of([tmp_path])


class TestStepSize:
    def test_a_start_that_is_almost_exact_is_moved_little(self):
        assert step_size(1e-4, 1.0) == pytest.approx(step_size(1e-2, 1.0) / 10)
        assert step_size(0.0, 1.0) == 0
        assert step_size(5.0, 1.0) == LARGEST_STEP
        assert step_size(0.0, 0.0) == 0

    def test_what_rounding_makes_is_not_fitted(self):
        assert step_size(1e-12, 1.0) == 0
        assert step_size(1e-6, 1.0) > 0
