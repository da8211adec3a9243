"""The options of `outputs`: shared by both functions, normalised once, and the names that candidates get from them."""

from pathlib import Path

import pytest
import torch

from deltarank.errors import UsageError
from deltarank.jobs.outputs import OutputsOptions
from deltarank.jobs.outputs.candidate_names import candidate_kinds
from refusals import refused


def test_values_are_normalised() -> None:
    options = OutputsOptions(
        ranks=[64, 4, 64],  # type: ignore[arg-type]
        adapters=Path("a/b"),  # type: ignore[arg-type]
        yardsticks=["q8_0", "q8_0"],  # type: ignore[arg-type]
        texts="book.txt",  # type: ignore[arg-type]
    )

    assert options == OutputsOptions(ranks=(4, 64), adapters=("a/b",), yardsticks=("q8_0",), texts=("book.txt",))
    assert options.to_plain()["ranks"] == [4, 64]


@pytest.mark.parametrize("number", ["samples", "max_tokens", "batch"])
def test_a_number_that_is_too_small_is_refused(number: str) -> None:
    with refused("bad-number", UsageError, match=f"--{number.replace('_', '-')} is -1; the smallest value is"):
        OutputsOptions(**{number: -1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "stored", "dtype"),
    [
        ("cpu", torch.bfloat16, "float32"),
        ("cuda", torch.bfloat16, "bfloat16"),
        ("cuda", torch.float8_e4m3fn, "float32"),
    ],
)
def test_the_automatic_dtype(device: str, stored: torch.dtype, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OutputsOptions, "torch_device", torch.device(device))

    assert OutputsOptions().with_dtype(stored).dtype == dtype
    assert OutputsOptions(dtype="float16").with_dtype(stored).dtype == "float16"


def names(options: OutputsOptions) -> tuple[str, ...]:
    return tuple(name for name, _ in candidate_kinds(options, 8))


def test_every_candidate_has_a_name_of_its_own() -> None:
    options = OutputsOptions(
        ranks=(8,),
        adapters=("x/one", "y/one", "z/base/", "z/truncation alone at rank 8"),
        models=("org/two", "org/q4_0", "x/one"),
        yardsticks=("q4_0",),
    )

    assert names(options) == (
        *("finetune again", "whole delta", "base", "rank 8", "any rank", "truncation alone at rank 8"),
        *("x/one", "y/one", "adapter base", "adapter truncation alone at rank 8"),
        *("two", "model q4_0", "one"),
        "q4_0",
    )
    shared = OutputsOptions(adapters=("runs/mine",), models=("org/mine",))
    assert names(shared)[-2:] == ("mine", "model mine")
