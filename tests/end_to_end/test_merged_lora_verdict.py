"""The verdict on LoRAs that PEFT merged in each dtype, and on full finetunes that resemble them."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

import deltarank
from deltarank.results import Results, VerdictKind

SHAPES = {"mlp.up_proj": (192, 160), "mlp.down_proj": (160, 192), "self_attn.q_proj": (160, 160)}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Layer(nn.Module):
    """Linear layers with normal weights, of which some columns are larger, as in trained models."""

    def __init__(self, number: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(number)
        for name, (rows, columns) in SHAPES.items():
            linear = nn.Linear(columns, rows, bias=False)
            with torch.no_grad():
                sizes = 0.02 * torch.exp(0.3 * torch.randn(columns, generator=generator))
                linear.weight.copy_(sizes * torch.randn(rows, columns, generator=generator))
            self.add_module(name.replace(".", "_"), linear)


def layers(dtype: torch.dtype) -> list[Layer]:
    return [Layer(number).to(dtype) for number in range(2)]


def write(folder: Path, made: list[Layer]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Tensor] = {
        f"model.layers.{number}.{name}.weight": layer.get_submodule(name.replace(".", "_")).weight.detach()
        for number, layer in enumerate(made)
        for name in SHAPES
    }
    save_file(weights, folder / "model.safetensors")
    return folder


def merge(layer: Layer, rank: int, relative_norm: float) -> Layer:
    """PEFT's merge of a LoRA whose product has this norm, relative to the weights'."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=[name.replace(".", "_") for name in SHAPES])
    model = get_peft_model(layer, config)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "lora_A") and "default" in module.lora_A:
                down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
                down.normal_()
                up.normal_()
                size = torch.linalg.matrix_norm(2 * up.float() @ down.float())
                base = torch.linalg.matrix_norm(module.get_base_layer().weight.float())
                up.mul_(relative_norm * float(base) / float(size))
    merged: Layer = model.merge_and_unload()
    return merged


def compared(tmp_path: Path, dtype: torch.dtype, after: list[Layer], ranks: list[int] | None) -> Results:
    base = write(tmp_path / "base", layers(dtype))
    return deltarank.compare(base, write(tmp_path / "finetune", after), **({"ranks": ranks} if ranks else {}))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [4, 8, 16, 64])
def test_a_merged_lora_is_one_of_its_rank(tmp_path: Path, dtype: str, rank: int) -> None:
    """Whether or not its rank is the highest that is measured, as long as none of it is lost in the rounding."""
    least = 0.05 if (dtype, rank) == ("bfloat16", 64) else 0.01
    for relative_norm in (least, 0.1, 0.5):
        torch.manual_seed(rank)
        after = [merge(layer.to(DTYPES[dtype]), rank, relative_norm) for layer in layers(DTYPES[dtype])]
        for ranks in (None, [rank]):
            verdict = compared(tmp_path, DTYPES[dtype], after, ranks).verdict

            assert (verdict.kind, verdict.signal_rank) == (VerdictKind.MERGED_LORA, rank), (relative_norm, ranks)


@pytest.mark.parametrize("hidden", [4, 10])
def test_directions_under_the_rounding_do_not_hide_a_lora(tmp_path: Path, hidden: int) -> None:
    """In one matrix of six only some of the 16 directions are larger than the rounding of bfloat16."""
    torch.manual_seed(hidden)
    after = [merge(layer, 16, 0.015) for layer in layers(torch.bfloat16)]
    old = layers(torch.bfloat16)[0].get_submodule("mlp_up_proj").weight.detach().float()
    moved = old * (1 + 0.01 * torch.rand_like(old))
    edge = torch.linalg.matrix_norm(moved.bfloat16().float() - moved, ord=2)
    left, values, right = torch.linalg.svd(torch.randn_like(old), full_matrices=False)
    values[: 16 - hidden], values[16 - hidden : 16], values[16:] = 12 * edge, 0.85 * edge, 0.0
    with torch.no_grad():
        after[0].get_submodule("mlp_up_proj").weight.copy_(old + left @ torch.diag(values) @ right)
    verdict = compared(tmp_path, torch.bfloat16, after, None).verdict

    assert (verdict.kind, verdict.signal_rank) == (VerdictKind.MERGED_LORA, 16)


def test_a_large_lora_is_not_an_unrelated_model(tmp_path: Path) -> None:
    after = [merge(layer, 8, 1.5) for layer in layers(torch.float32)]

    assert compared(tmp_path, torch.float32, after, None).verdict.kind is VerdictKind.MERGED_LORA


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", [0.5, 1.0, 1.5, 2.0])
def test_a_full_finetune_is_no_merged_lora(tmp_path: Path, dtype: str, decay: float) -> None:
    """Singular values that fall as i^-decay: those under the noise edge of bfloat16 cannot be told from rounding."""
    for relative_norm in (0.005, 0.02, 0.1):
        generator = torch.Generator().manual_seed(5)
        after = layers(torch.float32)
        for layer in after:
            for name in SHAPES:
                weight = layer.get_submodule(name.replace(".", "_")).weight
                u, _, v = torch.linalg.svd(torch.randn(weight.shape, generator=generator), full_matrices=False)
                values = torch.arange(1.0, len(v) + 1) ** -decay
                values *= torch.exp(0.05 * torch.randn(len(v), generator=generator))
                values *= relative_norm * torch.linalg.matrix_norm(weight.detach()) / values.norm()
                with torch.no_grad():
                    weight.copy_(layer.to(DTYPES[dtype]).get_submodule(name.replace(".", "_")).weight)
                    weight.add_((u * values) @ v)
        verdict = compared(tmp_path, DTYPES[dtype], [layer.to(DTYPES[dtype]) for layer in after], None).verdict

        assert verdict.kind is not VerdictKind.MERGED_LORA, (relative_norm, verdict.signal_rank)


def test_one_matrix_that_was_trained_whole_is_not_explained_by_the_lora_of_the_others(tmp_path: Path) -> None:
    torch.manual_seed(0)
    after = [merge(layer, 8, 0.05) for layer in layers(torch.float32)]
    weight = after[1].get_submodule("mlp_down_proj").weight
    with torch.no_grad():
        weight.copy_(layers(torch.float32)[1].get_submodule("mlp_down_proj").weight + 0.001 * torch.randn_like(weight))
    results = compared(tmp_path, torch.float32, after, [8, 16])
    share = results.totals.by_module["mlp.down_proj"].energy / results.totals.whole.energy

    assert 0.05 < share < 0.6
    assert results.verdict.kind is VerdictKind.FULL
    assert not any("merged LoRA" in sentence for sentence in results.verdict.sentences)
