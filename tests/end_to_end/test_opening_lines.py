"""The lines under the headline of `compare`: the kind of delta, the rank that it needs, what a LoRA leaves out."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoints import base_weights, full_finetune, merged_lora, write
from torch import Tensor

import deltarank
from deltarank.divergence import TokenStats, summarise_logits
from deltarank.jobs.compare import judge
from deltarank.report import page_html, terminal_summary
from deltarank.results import ABOVE_EDGE, CandidateKind, CandidateResult, Outputs, Results, Text, VerdictKind

RANKS = (2, 4, 8, 16)
EMBEDDING = "model.embed_tokens.weight"


def compared(
    folder: Path, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], dtype=torch.float32, ranks=RANKS
) -> Results:
    paths = [write(folder / name, each, dtype=dtype) for name, each in (("base", base), ("tuned", tuned))]
    return deltarank.compare(*paths, ranks=ranks)


def behaviour(kept: Mapping[int | None, float], adapters: Mapping[str, float] | None = None) -> Outputs:
    """Outputs of which each rank keeps this share; None: unlimited rank. So do adapters of rank 8."""

    def candidate(name: str, kind: CandidateKind, rank: int | None, kld: float) -> CandidateResult:
        made = [{"document": _stats(each)} for each in (kld, 1.0)]
        logits = summarise_logits("own answers", made[0], base=made[1], sampled_from_reference=True)
        return CandidateResult(name, kind, rank, (logits,))

    ranks = [candidate(f"rank {rank}", CandidateKind.RANK, rank, 1 - share) for rank, share in kept.items()]
    base = candidate("base", CandidateKind.BASE, None, 1.0)
    others = [candidate(name, CandidateKind.ADAPTER, 8, 1 - share) for name, share in (adapters or {}).items()]
    return Outputs("tuned", (Text("own answers", 1, 40, own=True),), (base, *ranks, *others))


def _stats(kld: float) -> TokenStats:
    each, zeros = np.full(40, kld, np.float32), np.zeros(40, np.float32)
    return TokenStats(each, each, zeros, zeros, zeros, np.ones(40, np.bool_), zeros, np.arange(40, dtype=np.int32))


def with_outputs(results: Results, outputs: Outputs) -> Results:
    verdict = judge(results.matrices, results.skipped, "tuned", outputs=outputs)
    return replace(results, outputs=outputs, verdict=verdict)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_lora_needs_its_rank_and_no_other_is_mentioned(tmp_path: Path, dtype: torch.dtype) -> None:
    """Of a merge in bfloat16, rounding is spread over all ranks: the LoRA's rank keeps less than 99 % of the energy."""
    base = base_weights()
    tuned = {
        name: w + (0.02 if dtype == torch.bfloat16 else 1.0) * (after - w)
        for (name, w), after in zip(base.items(), merged_lora(base, 4).values(), strict=True)
    }
    results = compared(tmp_path, base, tuned, dtype)
    kind, needed, left_out = results.verdict.opening

    about = "about " if dtype == torch.bfloat16 else ""
    assert kind.startswith(f"This looks like a merged LoRA of rank {about}4")
    assert needed.startswith("Rank 4 (in vLLM a slot of rank 8) is enough: it keeps ")
    assert left_out == "A LoRA can carry all of the change: no other tensor changed."
    assert not any("relative error" in sentence or "16" in sentence for sentence in results.verdict.sentences)
    if dtype == torch.bfloat16:
        assert needed.endswith(f" of {ABOVE_EDGE}.")
        assert results.totals.whole.loss(4).energy_kept < 0.99


def test_the_rank_needed_keeps_the_share_of_the_singular_values_that_it_states(tmp_path: Path) -> None:
    ranks = (8, 16, 24)
    results = compared(tmp_path, base_weights(), full_finetune(base_weights()), ranks=ranks)
    energies = [loss.energy_kept for loss in results.totals.losses]
    enough = next(rank for rank, kept in zip(ranks, energies, strict=True) if kept >= 0.9)

    assert energies[-1] < 0.99
    assert f"To keep 90 % of the change in the matrices, a LoRA needs rank {enough}" in results.verdict.opening[1]
    assert "; to keep 99 %, a rank above 24, the highest measured (estimated: " in results.verdict.opening[1]


def trained_embedding(folder: Path, *, tied: bool) -> tuple[Results, float]:
    """A merged LoRA whose embedding changed a lot, and the share of the embedding."""
    base = {name: w for name, w in base_weights().items() if name != "lm_head.weight"}
    tuned = merged_lora(base, 2)
    tuned[EMBEDDING] = base[EMBEDDING] + 0.1 * torch.randn(base[EMBEDDING].shape, generator=torch.manual_seed(3))
    for name, weights in (("base", base), ("tuned", tuned)):
        config = write(folder / name, weights, dtype=torch.float32) / "config.json"
        plain = json.loads(config.read_text()) | {"tie_word_embeddings": tied, "architectures": ["LlamaForCausalLM"]}
        config.write_text(json.dumps(plain))
    energy = {name: float((tuned[name] - base[name]).double().square().sum()) for name in base}
    return deltarank.compare(folder / "base", folder / "tuned", ranks=RANKS), energy[EMBEDDING] / sum(energy.values())


@pytest.mark.parametrize("tied", [True, False])
def test_the_embedding_is_named_if_it_is_the_limit(tmp_path: Path, tied: bool) -> None:
    results, share = trained_embedding(tmp_path, tied=tied)
    line = results.verdict.opening[2]

    is_head_too = " (which is also the output head)" if tied else ""
    assert line.startswith(f"What limits every rank is model.embed_tokens{is_head_too}. ")
    assert f"It holds {100 * share:.0f} % of the whole change" in line
    assert "Freezing it in training avoids that." in line
    assert line in " ".join(terminal_summary(results).split())


def test_what_is_included_is_not_called_part_of_a_lora(tmp_path: Path) -> None:
    """Norms are never measured as matrices; of a head, the first sentence says that portable adapters lack it."""
    base = base_weights()
    tuned = {name: w + 0.01 * torch.randn(w.shape, generator=torch.manual_seed(1)) for name, w in base.items()}
    paths = [write(tmp_path / name, each, dtype=torch.float32) for name, each in (("base", base), ("tuned", tuned))]
    results = deltarank.compare(*paths, ranks=RANKS, include=["*"])
    text = " ".join(results.verdict.sentences)
    energy = {name: float((tuned[name] - base[name]).double().square().sum()) for name in base}
    included = [name for name in energy if "embed" in name or "lm_head" in name]
    share = sum(energy[name] for name in included) / sum(energy.values())

    assert all(min(matrix.shape) > 1 for matrix in results.matrices)
    assert "A LoRA can carry" not in text
    assert "which a portable adapter leaves out." in results.verdict.sentences[0]
    assert "which a portable adapter leaves out." in " ".join(terminal_summary(results).split())
    assert f"included by name here ({100 * share:.0f} % of the change that was read); " in results.verdict.opening[2]


def test_where_outputs_were_measured_the_lines_are_about_behaviour(tmp_path: Path) -> None:
    results, _ = trained_embedding(tmp_path, tied=True)
    measured = with_outputs(results, behaviour({2: 0.8, 8: 0.925, 16: 0.93, None: 0.93}))

    assert measured.headline_rank == 2
    assert measured.verdict.opening[1] == (
        "Ranks above 8 gain little: plain extraction of rank 8 keeps 92 % of the behaviour, of unlimited rank 93 %."
    )
    limited = with_outputs(results, behaviour({2: 0.92, None: 0.93})).verdict.opening
    assert "leaves it out, so that plain extraction of unlimited rank keeps 93 % of the behaviour." in limited[2]
    enough = with_outputs(results, behaviour({2: 0.5, 8: 0.999, None: 1.0})).verdict.opening
    assert enough[1] == "Rank 8 is enough: it keeps 99.9 % of the behaviour."
    too_low = with_outputs(results, behaviour({2: 0.4, 8: 0.5, None: 0.97})).verdict.opening
    assert too_low[1] == (
        "No measured rank is enough: plain extraction of rank 8 keeps 50 % of the behaviour, and of unlimited rank it "
        "would keep 97 %."
    )


def test_an_adapter_that_keeps_more_than_any_rank_is_named(tmp_path: Path) -> None:
    results, _ = trained_embedding(tmp_path, tied=True)
    better = behaviour({2: 0.5, 8: 0.6, None: 0.74}, adapters={"plain": 0.74, "calibrated": 0.86, "another": 0.8})
    needed = with_outputs(results, better).verdict.opening[1]
    assert needed.endswith(
        "it would keep 74 %. The adapter calibrated, of rank 8, keeps 86 %: more than plain extraction at any rank."
    )
    assert "adapter" not in with_outputs(results, behaviour({2: 0.5, None: 0.7}, {"plain": 0.7})).verdict.opening[1]


def test_a_lora_keeps_nothing_of_a_change_elsewhere(tmp_path: Path) -> None:
    """The terminal says it once."""
    base = base_weights()
    results = compared(tmp_path, base, {**base, EMBEDDING: 1.5 * base[EMBEDDING]})

    assert results.verdict.sentences[1].endswith(", and a LoRA on the measured matrices keeps nothing of it.")
    text = " ".join(terminal_summary(results).split())
    assert text.count("that were measured: all of its change is in tensors that were not.") == 1


def test_one_rank_alone_is_called_enough(tmp_path: Path) -> None:
    """The rank of a merged LoRA, and a lower one that keeps all of the behaviour."""
    base = base_weights()
    results = compared(tmp_path, base, merged_lora(base, 4))
    measured = with_outputs(results, behaviour({2: 1.0, 4: 1.0, None: 1.0})).verdict.sentences

    assert [sentence for sentence in measured if "enough" in sentence] == [
        "Rank 2 is enough: it keeps 100 % of the behaviour."
    ]
    assert any(sentence.startswith("Rank 4 (in vLLM a slot of rank 8) keeps ") for sentence in measured)


def test_page_and_terminal_open_with_the_three_lines_and_one_rank(tmp_path: Path) -> None:
    results = with_outputs(trained_embedding(tmp_path, tied=True)[0], behaviour({8: 0.9, None: 0.93}))
    headline = "As a rank-8 LoRA, tuned keeps 90 % of its behaviour"
    lines = results.verdict.opening
    terminal, page = " ".join(terminal_summary(results).split()), page_html([results]).replace("\u00a0", " ")

    assert results.headline_rank == 8
    for shown in (terminal, page[page.index("<header>") : page.index("</header>")]):
        positions = [shown.index(line.replace("'", "&#39;") if "<p>" in shown else line) for line in lines]
        assert positions == sorted(positions)
        assert "As a rank-8 LoRA, " in shown
    assert terminal.startswith(headline)
    assert "measured at rank" not in page[: page.index("<main>")]


def test_nothing_is_kept_of_an_unrelated_model(tmp_path: Path) -> None:
    results = compared(tmp_path, base_weights(), base_weights(seed=9))
    page = page_html([results])

    assert results.verdict.kind is VerdictKind.UNRELATED
    assert "tuned is not a finetune of this base" in results.verdict.sentences[0]
    for shown in (terminal_summary(results), page[: page.index("<main>")]):
        assert "not a finetune of this base" in shown
        assert "keeps" not in shown
    related = compared(tmp_path / "related", base_weights(), full_finetune(base_weights()))
    both = page_html([results, replace(related, finetune=replace(related.finetune, ref="other"))])
    assert "not comparable with this base." in both[: both.index("<main>")]
    assert "<em>other</em> keeps" in both.replace("\u00a0", " ")
