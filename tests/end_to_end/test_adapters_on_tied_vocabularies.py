"""An adapter that changes the embedding or the output head of a model that ties them: PEFT changes what it names alone.

PEFT's own logits, without a merge, are the truth: a merge would write into the weights that both share.
"""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

import deltarank
import peft_adapters as made
from commands import RunCommand
from deltarank.adapters import open_finetune
from deltarank.checkpoints import open_checkpoint
from deltarank.demo.model import tokenizer
from deltarank.demo.recipe import Recipe
from deltarank.results import FitKind, TensorChange
from tiny_architectures import SIZES, architecture

TIED = architecture(
    "llama",
    **SIZES | {"vocab_size": 259, "pad_token_id": 258, "bos_token_id": 256, "eos_token_id": 257},
    tie_word_embeddings=True,
)
TOKENS = torch.arange(3, 40)[None]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
CASES: dict[str, dict[str, Any]] = {
    "head and matrices": {"target_modules": ["q_proj", "v_proj", "lm_head"]},
    "head alone": {"target_modules": ["lm_head"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "embedding alone": {"target_modules": ["embed_tokens"]},
    "embedding saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "head saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "both saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "a tie that is ensured": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "a tied LoRA": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
}
UNTIED = [case for case in CASES if "tie" not in case]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, another checkpoint, and an adapter for each case, with random numbers in all of its tensors."""
    home = tmp_path_factory.mktemp("tied")
    made.write_base(TIED, home / "base")
    made.finetune(home / "base", home / "other")
    tokenizer(Recipe()).save_pretrained(home / "base")
    tokenizer(Recipe()).save_pretrained(home / "other")
    for case, config in CASES.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_pretrained(home / "base")
            adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **config))
            torch.manual_seed(1)
            with torch.no_grad():
                for name, weight in adapted.named_parameters():
                    if "lora_" in name or "modules_to_save" in name:
                        weight.add_(0.1 * torch.randn_like(weight))
            adapted.save_pretrained(home / case, save_embedding_layers=False)
    return home


def logits_of_peft(home: Path, case: str) -> Tensor:
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(home / "base")
        logits: Tensor = PeftModel.from_pretrained(model, home / case).eval()(input_ids=TOKENS).logits
        return logits


def logits_of_finetune(home: Path, case: str) -> Tensor:
    """Of the checkpoint that `compare` and `extract` take the adapter for."""
    with open_checkpoint(home / "base") as base, open_finetune(home / case, base, revision=None, fetch="auto") as tuned:
        weights = {}
        for name, info in tuned.tensors.items():
            raw = torch.empty(info.nbytes, dtype=torch.uint8)
            tuned.source.read_into(info.file, info.start, raw.numpy().data)
            weights[name] = raw.view(torch.float32).view(info.shape)
        ties = tuned.config["tie_word_embeddings"]
    config = TIED().config
    config.tie_word_embeddings = ties
    model = AutoModelForCausalLM.from_config(config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (([HEAD], []) if ties else ([], []))
    with torch.inference_mode():
        logits: Tensor = model.eval()(input_ids=TOKENS).logits
        return logits


@pytest.mark.parametrize("case", CASES)
def test_the_finetune_is_what_peft_predicts(case: str, home: Path) -> None:
    torch.testing.assert_close(logits_of_finetune(home, case), logits_of_peft(home, case), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("case", UNTIED)
def test_verify_counts_the_head_as_a_tensor_of_its_own(case: str, home: Path) -> None:
    seen = deltarank.verify(home / "base", home / case, home / case)
    rows = {row.name: row for row in seen.tensors}

    assert seen.kind is FitKind.OPTIMAL
    assert seen.whole.share_lost == pytest.approx(0, abs=1e-6)
    assert seen.unused == ()
    changed = {name for name in (HEAD, EMBEDDING) if rows[name].change is not TensorChange.NONE}
    assert changed == {
        *([HEAD] if case.startswith(("head", "both")) else []),
        *([EMBEDDING] if case.startswith(("embedding", "both")) else []),
    }


def test_a_lora_on_the_head_is_beside_the_finetune_s_tied_change(home: Path) -> None:
    """The finetune changed its vocabulary, which it uses twice; the adapter changes nothing of it as an embedding."""
    seen = deltarank.verify(home / "base", home / "other", home / "head alone")
    rows = {row.name: row for row in seen.tensors}

    assert rows[HEAD].energies.energy == pytest.approx(rows[EMBEDDING].energies.energy)
    assert rows[HEAD].energies.added > 0 == rows[EMBEDDING].energies.added
    assert rows[EMBEDDING].energies.lost == rows[EMBEDDING].energies.energy


def test_a_change_of_the_head_alone_is_never_called_none(home: Path, tmp_path: Path, command: RunCommand) -> None:
    ran = command("compare", home / "base", home / "head alone", "-o", tmp_path / "run", "--ranks", "4", "-q")

    assert ran.code == 0
    assert "changed nothing" not in ran.out
    assert "matrices that were measured: all of its change is in tensors that were not" in " ".join(ran.out.split())


@pytest.mark.parametrize("case", ["head and matrices", "embedding saved whole", "a tie that is ensured"])
def test_outputs_predicts_what_peft_predicts(case: str, home: Path, tmp_path: Path) -> None:
    """Mean KLD of the adapter from the finetune, against PEFT's logits in float64."""
    (tmp_path / "text.txt").write_text("the rain fell on the stones and the old man counted them " * 3)
    found = deltarank.outputs(
        home / "base",
        home / "other",
        output=tmp_path / "run",
        ranks=(4,),
        adapters=[home / case],
        texts=[tmp_path / "text.txt"],
        samples=0,
    )
    assert found.outputs is not None
    ids = torch.tensor([[256, *(tmp_path / "text.txt").read_bytes()]])
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        models = [AutoModelForCausalLM.from_pretrained(home / name, dtype=torch.float64) for name in ("other", "base")]
        models[1] = PeftModel.from_pretrained(models[1], home / case)
        p, q = (torch.log_softmax(model.eval()(input_ids=ids).logits[0, :-1], -1) for model in models)

    wanted = float((p.exp() * (p - q)).sum(-1).mean())
    assert found.outputs.candidate(case).logits[0].kld.mean == pytest.approx(wanted, rel=1e-4)
