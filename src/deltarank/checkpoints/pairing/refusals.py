"""Refuses two checkpoints that do not belong together, before any tensor is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from deltarank.checkpoints.checkpoint import Checkpoint
from deltarank.checkpoints.escape import dimensions, quoted
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.pairing.name_matches import NameMatches, several_copies
from deltarank.checkpoints.pairing.notes import quantised_sides
from deltarank.checkpoints.pieces import SummedTensor
from deltarank.errors import PairingError
from deltarank.results import Outcome, Skipped, count

Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""Of matched matrices: the shape in the base, and that in the finetune."""

_CHECK_BASE = "Give the base that this finetune was trained from; its model card or publisher names it."
_ONE_SET = (
    "Save the set of weights that is meant (the trained one, not its reference or teacher) alone, and give that file."
)
_UNQUANTISED = (
    "Give the unquantised checkpoint in bfloat16, float16 or float32; or one in a quantised format that is supported."
)
_ADAPTER_KEYS = (".lora_A.", ".lora_B.", ".lora_embedding_A", ".lora_magnitude_vector", ".lora_down.", ".lora_up.")


def refuse_same(base: Checkpoint, finetune: Checkpoint) -> None:
    """Raises:
    PairingError: (slug "same-checkpoint") both sides are known to be the same files.
    """
    if _identities(base) == _identities(finetune):
        raise PairingError(
            f"BASE and FINETUNE are the same files: {quoted(base.reference.ref)} and {quoted(finetune.reference.ref)}.",
            cure="Give the base first and its finetune second.",
            slug="same-checkpoint",
        )


def _identities(checkpoint: Checkpoint) -> list[str]:
    return sorted(checkpoint.source.identity(file) for file in checkpoint.source.files)


def refuse_adapters(side: str, checkpoint: Checkpoint) -> None:
    """With unmerged adapters, the matrices of a finetune are those of the base: comparing them would say "identical".

    Raises:
        PairingError: (slug "adapter-not-merged") the checkpoint holds LoRA factors.
    """
    for name in checkpoint.tensors:
        if any(key in name for key in _ADAPTER_KEYS):
            raise PairingError(
                f"The {side} contains LoRA factors beside its weights, such as {quoted(name)}.",
                cure="Merge them first (PEFT: `merge_and_unload`, then `save_pretrained`) and give that folder.",
                slug="adapter-not-merged",
            )


def refuse_unrelated(
    base: Checkpoint, finetune: Checkpoint, matches: NameMatches, matrices: Sequence[str], *, has_include: bool
) -> None:
    """`matrices` are the finetune's names of the matched matrices without the vocabulary.

    Raises:
        PairingError: (slug "nothing-in-common") there are none; (slug "transposed-weights") one side stores most of
            them as their transpose; (slug "wrong-base") most of them differ in shape.
    """
    if not matches.names or not (matrices or has_include):
        raise _nothing_in_common(base, finetune, matches)
    shapes = {name: (base.tensors[matches.names[name]].shape, finetune.tensors[name].shape) for name in matrices}
    _refuse_transposed(shapes)
    differing = [name for name, (ours, theirs) in shapes.items() if ours != theirs]
    if 2 * len(differing) > len(matrices):
        raise _wrong_base(shapes, differing)


def _refuse_transposed(shapes: Shapes) -> None:
    """Square matrices do not show it, and would be compared with their transpose: so the others decide."""
    oblong = [name for name, (ours, _) in shapes.items() if len(ours) == 2 and ours[0] != ours[1]]
    transposed = [name for name in oblong if shapes[name][1] == shapes[name][0][::-1]]
    if 2 * len(transposed) <= len(oblong):
        return
    name = transposed[0]
    base_shape, finetune_shape = map(dimensions, shapes[name])
    raise PairingError(
        f"{len(transposed):,} of {count(len(oblong), 'matrix', 'matrices')} that are not square have the shape of the "
        f"base's transpose, such as {quoted(name)}: {base_shape} in the base and {finetune_shape} in the finetune.",
        cure="Transpose the linear layers of one of the two (square ones, too) and save it again. GPT-2 of "
        "transformers stores them as inputs x outputs; nanoGPT and `torch.nn.Linear` as outputs x inputs.",
        slug="transposed-weights",
    )


def _nothing_in_common(base: Checkpoint, finetune: Checkpoint, matches: NameMatches) -> PairingError:
    examples = f"a matrix of the base is {_example(base)}, one of the finetune {_example(finetune)}"
    details = [examples, *quantised_sides(base, finetune)]
    details += ["some names match several names of the other side"] if matches.ambiguous else []
    details += [several_copies(matches.copies)] if matches.copies else []
    undecoded = [*_undecoded("base", base), *_undecoded("finetune", finetune)]
    message = f"The two checkpoints have no matrix in common: {'; '.join([*details, *undecoded])}."
    if undecoded:
        return PairingError(message, cure=_UNQUANTISED, slug="quantised-format")
    return PairingError(message, cure=_ONE_SET if matches.copies else _CHECK_BASE, slug="nothing-in-common")


def _undecoded(side: str, checkpoint: Checkpoint) -> Iterator[str]:
    """What keeps the matrices of a quantised checkpoint from being decoded, if anything does."""
    tensors = checkpoint.tensors.values()
    obstacles = {info.name: info.storage.obstacle for info in tensors if info.storage and info.storage.obstacle}
    if obstacles:
        name, obstacle = next(iter(obstacles.items()))
        yield f"{count(len(obstacles), 'tensor')} of the {side} cannot be decoded, such as {quoted(name)}: {obstacle}"
    elif checkpoint.config.get("quantization_config") and not any(map(_is_plain_weight, tensors)):
        yield f"no matrix of the {side} is stored in a quantised format that is supported"


def _is_plain_weight(info: TensorInfo) -> bool:
    is_in_layer = any(part.isdecimal() for part in info.name.split("."))
    return is_in_layer and len(info.shape) > 1 and info.name.endswith(".weight")


def _example(checkpoint: Checkpoint) -> str:
    """The first matrix by name, inside a layer if there is one."""
    matrices = [name for name, info in checkpoint.tensors.items() if len(info.shape) > 1]
    inside = [name for name in matrices if any(part.isdecimal() for part in name.split("."))]
    return quoted(min(inside or matrices)) if matrices else "missing: it contains none"


def _wrong_base(shapes: Shapes, differing: Sequence[str]) -> PairingError:
    example = differing[0]
    base_shape, finetune_shape = map(dimensions, shapes[example])
    return PairingError(
        f"{len(differing):,} of {count(len(shapes), 'matrix', 'matrices')} differ in shape, so BASE is not the "
        f"base of FINETUNE: {quoted(example)} is {base_shape} in the base and {finetune_shape} in the finetune.",
        cure=_CHECK_BASE,
        slug="wrong-base",
    )


def refuse_empty(skipped: Iterable[Skipped | SummedTensor], *, selected: bool) -> None:
    """To be called if no matrix is left to measure.

    Raises:
        PairingError: (slug "not-floating") the weights are quantised; (slug "nothing-to-measure") for other reasons.
    """
    outcomes = Counter(skip.outcome for skip in skipped)
    reasons = {skip.outcome: skip.reason for skip in skipped}
    if outcomes[Outcome.NOT_FLOATING] and not outcomes[Outcome.EXCLUDED]:
        raise PairingError(
            f"No matrix can be compared in the format in which it is stored: {reasons[Outcome.NOT_FLOATING]}.",
            cure="Give checkpoints in bfloat16, float16 or float32, which many publishers offer as well.",
            slug="not-floating",
        )
    counts = [f"{count(number, 'tensor')}: {outcome.sentence}" for outcome, number in outcomes.most_common()]
    raise PairingError(
        "No matrix is left to measure" + (f" ({'; '.join(counts[:4])})." if counts else "."),
        cure="Widen --include, or narrow --exclude." if selected else _CHECK_BASE,
        slug="nothing-to-measure",
    )
