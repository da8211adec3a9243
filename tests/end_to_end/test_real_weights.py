"""Real weights: a BERT on chemical reactions and its two finetunes, from the package rxnfp (MIT).

Files of torch before 1.6, a prefix on one side only, heads on one side only, matrices stored as their transpose.
"""

import shlex
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

import deltarank
from commands import RunCommand
from deltarank.results import BaseKind
from doc_blocks import blocks_of, to_run
from packages import NotAvailableError, downloaded

pytestmark = pytest.mark.slow

WHEEL = "rxnfp-0.1.0-py3-none-any.whl"
SHA256 = "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf"
INSIDE = "rxnfp/models/transformers"
BASE, CLASSIFIER, YIELDS = "bert_pretrained", "bert_ft", "bert_ft_10k_25s"
LAYERS = ["*.self.*.weight", "*.dense.weight"]
EMBEDDINGS = ["*.*_embeddings.weight"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rxnfp")
    try:
        wheel = downloaded("rxnfp==0.1.0", WHEEL, SHA256, "--only-binary", "rxnfp")
    except NotAvailableError as error:
        pytest.skip(str(error))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(f"{INSIDE}/bert_")])
    return folder / INSIDE


def weights(folder: Path) -> dict[str, Tensor]:
    """As torch reads them, in float64, without the prefix."""
    loaded = torch.load(folder / "pytorch_model.bin", weights_only=True, map_location="cpu")
    return {name.removeprefix("bert."): tensor.double() for name, tensor in loaded.items()}


@pytest.mark.parametrize(
    ("finetune", "include", "matrices", "relative_norm", "kept"),
    [
        (CLASSIFIER, LAYERS, 73, 0.2614, 0.5516),
        (YIELDS, LAYERS, 73, 0.1126, 0.6917),
        (CLASSIFIER, LAYERS + EMBEDDINGS, 76, 0.2576, 0.5530),
        (YIELDS, LAYERS + EMBEDDINGS, 76, 0.1101, 0.6911),
    ],
)
def test_energies_are_those_of_float64(
    models: Path, finetune: str, include: list[str], matrices: int, relative_norm: float, kept: float
) -> None:
    before, after = weights(models / BASE), weights(models / finetune)
    results = deltarank.compare(models / BASE, models / finetune, ranks=[8, 16, 64], solver="exact", include=include)
    whole, total = results.totals.whole, 0.0
    for m in results.matrices:
        name = m.name.removeprefix("bert.")
        energies = torch.linalg.svdvals(after[name] - before[name]).square()
        total += float(energies.sum())
        for loss in m.losses:
            assert loss.energy_kept == pytest.approx(float(energies[: loss.rank].sum() / energies.sum()), abs=1e-6)

    assert whole.matrices == matrices
    assert whole.energy == pytest.approx(total, rel=1e-6)
    assert whole.relative_norm == pytest.approx(relative_norm, abs=5e-5)
    assert whole.loss(16).energy_kept == pytest.approx(kept, abs=5e-5)


def test_the_layers_are_what_is_measured_by_default(models: Path) -> None:
    results = deltarank.compare(models / BASE, models / YIELDS, ranks=[16])

    assert results.totals.whole.loss(16).energy_kept == pytest.approx(0.6917, abs=1e-4)


def test_the_first_screen_of_the_readme(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: RunCommand
) -> None:
    """The command is run where the page goes, and prints what the page shows."""
    (block,) = [block for block in to_run("README.md") if "rxnfp" in block.text]
    folder, line = block.commands
    assert folder == f"cd rxnfp/{INSIDE}"
    monkeypatch.chdir(shutil.copytree(models, tmp_path / "models"))
    monkeypatch.setenv("COLUMNS", "100")
    done = command(*shlex.split(line)[1:])
    shown = next(each.text for each in blocks_of("README.md") if each.text.startswith("As a rank-"))

    assert done.code == 0
    for paragraph in shown.strip().split("\n\n"):
        assert paragraph in done.out


def test_the_base_is_found_among_the_three(models: Path) -> None:
    for finetune, sibling in ((CLASSIFIER, YIELDS), (YIELDS, CLASSIFIER)):
        choice = deltarank.which_base(models / finetune, [models / sibling, models / BASE])

        assert choice.kind is BaseKind.FOUND
        assert choice.base is not None
        assert Path(choice.base.reference.ref).name == BASE
