"""The shapes of the pairs and where a pair lies on disk. Light: a process that measures others imports no torch."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

RECIPE_VERSION = 2
# 2: norms summed in float64.
_DTYPE_BYTES = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-like model. Matrices are stored as (output, input), as `torch.nn.Linear` does."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int = 512
    model_type: str = "llama"

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """The matrices of one layer by module."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (query, self.hidden),
            "self_attn.k_proj": (key, self.hidden),
            "self_attn.v_proj": (key, self.hidden),
            "self_attn.o_proj": (self.hidden, query),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    @property
    def layer_entries(self) -> int:
        return sum(math.prod(shape) for shape in self.matrices.values())

    @property
    def largest_matrix_bytes(self) -> int:
        """The largest matrix that is measured, in float32."""
        return 4 * max(math.prod(shape) for shape in self.matrices.values())

    @property
    def svd_work(self) -> float:
        """sum over a layer of rows * columns * min(rows, columns): what a full SVD costs, up to a constant."""
        return float(sum(rows * columns * min(rows, columns) for rows, columns in self.matrices.values()))


SHAPES: dict[str, Shape] = {
    "small": Shape(hidden=512, intermediate=2048, heads=8, kv_heads=2, head_dim=64),
    "llama": Shape(hidden=2048, intermediate=8192, heads=32, kv_heads=8, head_dim=64),
    "12b": Shape(hidden=5120, intermediate=14336, heads=32, kv_heads=8, head_dim=128, model_type="mistral"),
    "70b": Shape(hidden=8192, intermediate=28672, heads=64, kv_heads=8, head_dim=128),
    # Hardly any matrix, so that what remains is a run's fixed cost, and the cost of a row of the vocabulary.
    "few_words": Shape(hidden=5120, intermediate=64, heads=1, kv_heads=1, head_dim=64, vocabulary=512),
    "many_words": Shape(hidden=5120, intermediate=64, heads=1, kv_heads=1, head_dim=64, vocabulary=32768),
}


@dataclass(frozen=True)
class Pair:
    """A base and its finetune on disk."""

    folder: Path
    shape_name: str
    layers: int
    dtype: str

    @classmethod
    def at(cls, data: Path, shape_name: str, layers: int, dtype: str = "bf16") -> Pair:
        return cls(data / f"{shape_name}-{layers}-layers-{dtype}", shape_name, layers, dtype)

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def finetune(self) -> Path:
        return self.folder / "finetune"

    @property
    def shape(self) -> Shape:
        return SHAPES[self.shape_name]

    @property
    def title(self) -> str:
        return f"{self.shape_name}, {self.layers} layer{'s' if self.layers > 1 else ''}, {self.dtype}"

    @property
    def recipe(self) -> dict[str, object]:
        return {"recipe": RECIPE_VERSION, "layers": self.layers, "dtype": self.dtype, **asdict(self.shape)}

    @property
    def is_made(self) -> bool:
        """The folder is renamed into place when it is whole, so its recipe vouches for the weights."""
        try:
            return bool(json.loads((self.folder / "recipe.json").read_text()) == self.recipe)
        except (OSError, ValueError):
            return False

    def files(self) -> Iterator[Path]:
        yield from sorted(self.folder.glob("*/*.safetensors"))

    def warm(self) -> None:
        """Reads every byte once, so that nobody is charged for the disk's first read."""
        for path in self.files():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def ensure(data: Path, shape_name: str, layers: int, dtype: str = "bf16") -> Pair:
    """The pair, made in a process of its own if it is not there."""
    pair = Pair.at(data, shape_name, layers, dtype)
    if not pair.is_made:
        maker = Path(__file__).with_name("pairs.py")
        options = ["--shape", shape_name, "--layers", str(layers), "--dtype", dtype]
        subprocess.run([sys.executable, str(maker), str(data), *options], check=True)
    pair.warm()
    return pair
