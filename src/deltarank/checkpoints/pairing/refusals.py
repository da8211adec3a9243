"""Two checkpoints that do not belong together, said before a number is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from deltarank.checkpoints.checkpoint import Checkpoint
from deltarank.checkpoints.escape import dimensions, shown
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.pairing.notes import quantised
from deltarank.checkpoints.pairing.prefixes import Matches
from deltarank.errors import PairingError
from deltarank.results import Outcome, Skipped, count

_CHECK_BASE = "Give the base that this finetune was trained from: its model card or its publisher names it."
_ADAPTER_MARKS = (".lora_A.", ".lora_B.", ".lora_embedding_A", ".lora_magnitude_vector", ".lora_down.", ".lora_up.")


def refuse_same(base: Checkpoint, finetune: Checkpoint) -> None:
    """Equal files on both sides, known without reading them.

    Raises:
        PairingError: (slug "same-checkpoint") they are.
    """
    if _identities(base) == _identities(finetune):
        raise PairingError(
            f"BASE and FINETUNE are the same files: {shown(base.reference.ref)} and {shown(finetune.reference.ref)}.",
            cure="Give the base first and its finetune second.",
            slug="same-checkpoint",
        )


def _identities(checkpoint: Checkpoint) -> list[str]:
    return sorted(checkpoint.source.identity(file) for file in checkpoint.source.files)


def refuse_adapters(side: str, checkpoint: Checkpoint) -> None:
    """A checkpoint with unmerged adapters changes nothing in its own matrices: comparing those would say "identical".

    Raises:
        PairingError: (slug "adapter-not-merged") it holds factors of a LoRA.
    """
    for name in checkpoint.tensors:
        if any(mark in name for mark in _ADAPTER_MARKS):
            raise PairingError(
                f"The {side} holds LoRA factors beside its weights, such as {shown(name)}.",
                cure="Merge them first (`merge_and_unload` of PEFT, then `save_pretrained`), and give that folder.",
                slug="adapter-not-merged",
            )


def refuse_strangers(
    base: Checkpoint, finetune: Checkpoint, matches: Matches, matrices: Sequence[str], *, asked: bool
) -> None:
    """`matrices` are the finetune's names of the matched matrices, vocabulary aside; `asked`: some were named by globs.

    Raises:
        PairingError: (slug "nothing-in-common") there are none; (slug "wrong-base") most of them differ in shape.
    """
    if not matches.names or not (matrices or asked):
        raise _nothing_in_common(base, finetune, matches)
    differing = [name for name in matrices if _shapes_differ(name, base.tensors, finetune.tensors, matches.names)]
    if 2 * len(differing) > len(matrices):
        raise _wrong_base(base, finetune, matches, matrices, differing)


def _shapes_differ(
    name: str, base: Mapping[str, TensorInfo], finetune: Mapping[str, TensorInfo], names: Mapping[str, str]
) -> bool:
    return base[names[name]].shape != finetune[name].shape


def _nothing_in_common(base: Checkpoint, finetune: Checkpoint, matches: Matches) -> PairingError:
    examples = f"a matrix of the base is {_example(base)}, one of the finetune {_example(finetune)}"
    more = [examples, *quantised(base, finetune)]
    more += ["some names could belong to several of the other side"] if matches.ambiguous else []
    return PairingError(
        f"The two checkpoints have no matrix in common: {'; '.join(more)}.", cure=_CHECK_BASE, slug="nothing-in-common"
    )


def _example(checkpoint: Checkpoint) -> str:
    """The first matrix by name, inside a layer if there is one."""
    matrices = [name for name, info in checkpoint.tensors.items() if len(info.shape) > 1]
    inside = [name for name in matrices if any(part.isdecimal() for part in name.split("."))]
    return shown(min(inside or matrices)) if matrices else "missing, for it holds none"


def _wrong_base(
    base: Checkpoint, finetune: Checkpoint, matches: Matches, matrices: Sequence[str], differing: Sequence[str]
) -> PairingError:
    example = differing[0]
    theirs = dimensions(base.tensors[matches.names[example]].shape)
    ours = dimensions(finetune.tensors[example].shape)
    return PairingError(
        f"{len(differing):,} of {count(len(matrices), 'matrix', 'matrices')} differ in shape, so this is not the base "
        f"of that finetune: {shown(example)} is {theirs} in the base and {ours} in the finetune.",
        cure=_CHECK_BASE,
        slug="wrong-base",
    )


def refuse_empty(skipped: Iterable[Skipped], *, selected: bool) -> None:
    """Nothing is left to measure.

    Raises:
        PairingError: (slug "not-floating") the weights are quantised; (slug "nothing-to-measure") for other reasons.
    """
    outcomes = Counter(skip.outcome for skip in skipped)
    reasons = {skip.outcome: skip.reason for skip in skipped}
    if outcomes[Outcome.NOT_FLOATING] and not outcomes[Outcome.EXCLUDED]:
        raise PairingError(
            f"No matrix can be compared as it is stored: {reasons[Outcome.NOT_FLOATING]}.",
            cure="Give checkpoints in bfloat16, float16 or float32. Many publishers keep one beside the quantised one.",
            slug="not-floating",
        )
    found = [f"{count(number, 'tensor')}: {outcome.sentence}" for outcome, number in outcomes.most_common()]
    raise PairingError(
        "No matrix is left to measure" + (f" ({'; '.join(found[:4])})." if found else "."),
        cure="Loosen --include and --exclude." if selected else _CHECK_BASE,
        slug="nothing-to-measure",
    )
