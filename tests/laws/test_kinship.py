"""Kinship from sketches: cosines within the stated error, planted merges, duplicates, and other bases."""

import math
from collections.abc import Collection, Mapping

import pytest
import torch
from torch import Tensor

from deltarank.errors import ResultsError
from deltarank.jobs.fleet import encoded_sketch, find_kinship
from deltarank.results import DeltaFit, DeltaSketch, FleetFinetune, FleetOutcome, Kinship, VerdictKind

LENGTH = 256
SHAPES = {f"layers.{i}.{name}.weight": shape for i in range(6) for name, shape in (("q", (64, 64)), ("up", (160, 64)))}

Model = Mapping[str, Tensor]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_model(seed: int, scale: float = 1.0) -> Model:
    drawn = generator(seed)
    return {name: scale * torch.randn(shape, generator=drawn) for name, shape in SHAPES.items()}


BASE = random_model(0)
DELTAS = {name: random_model(seed, 0.05) for seed, name in enumerate("ABCDE", 1)}


def stored(deltas: Mapping[str, Model], base: Model = BASE) -> dict[str, Model]:
    """The finetunes in bfloat16, as checkpoints are stored; and what is then their difference from the base."""
    return {
        name: {key: (base[key] + change).bfloat16().float() - base[key] for key, change in model.items()}
        for name, model in deltas.items()
    }


def combined(**weights: float) -> Model:
    return {key: sum(weight * DELTAS[name][key] for name, weight in weights.items()) for key in SHAPES}  # type: ignore[misc]


def kinship(deltas: Mapping[str, Model], *, exact: Collection[str] = (), **verdicts: VerdictKind) -> Kinship:
    """The kinship of finetunes in bfloat16, except for those that are `exact`."""
    rows, sketches = [], {}
    for name, model in deltas.items():
        energy = math.fsum(float(each.double().square().sum()) for each in model.values())
        rounding = math.fsum(_rounding(BASE[key] + change) for key, change in model.items())
        rows.append(
            FleetFinetune(
                name,
                name,
                FleetOutcome.MEASURED,
                verdict=verdicts.get(name, VerdictKind.FULL),
                energy=energy,
                matrices=len(model),
                rounding_floor=0.0 if name in exact else rounding / energy,
            )
        )
        numbers = {key: encoded_sketch(key, change, LENGTH) for key, change in model.items()}
        sketches[name] = DeltaSketch(LENGTH, numbers)
    found = find_kinship(rows, sketches)
    assert found is not None
    return found


def _rounding(weight: Tensor) -> float:
    """The energy of rounding to bfloat16, which has 7 bits of mantissa."""
    _, exponents = torch.frexp(weight)
    return float(torch.exp2(2.0 * (exponents - 1) - 14).double().sum()) / 12


def weights(fit: DeltaFit) -> dict[str, float]:
    return {part.name: part.weight for part in fit.parts}


def exact_cosine(x: Model, y: Model) -> float:
    def dot(a: Model, b: Model) -> float:
        return math.fsum(float((a[key].double() * b[key].double()).sum()) for key in SHAPES)

    return dot(x, y) / math.sqrt(dot(x, x) * dot(y, y))


def test_cosines_are_within_their_stated_error() -> None:
    related = {**DELTAS, "AB": combined(A=1, B=0.3), "BC": combined(B=1, C=-0.8)}
    found = kinship(related)

    for first in related:
        for second in related:
            true = exact_cosine(related[first], related[second])
            assert abs(found.cosine(first, second) - true) <= 4 * found.standard_error * (1 - true**2) + 1e-4
    assert found.standard_error == pytest.approx(1 / math.sqrt(LENGTH * len(SHAPES)), rel=0.4)


@pytest.mark.parametrize(
    "planted",
    [
        {"A": 0.37, "B": 0.35, "C": 0.29},
        {"A": 0.5, "B": 0.5},
        {"B": 1.0, "D": 1.0, "E": 1.0},
        {"A": 0.9, "E": 0.1},
        {"C": 0.4},
    ],
    ids=["three", "mean", "task arithmetic", "a small part", "a part of one"],
)
def test_linear_merges_are_recovered(planted: dict[str, float]) -> None:
    found = kinship(stored({**DELTAS, "M": combined(**planted)}))

    (merge,) = found.merges
    assert merge.name == "M"
    assert weights(merge) == pytest.approx(planted, abs=0.01)
    assert merge.residual < 0.1
    assert any(sentence.startswith("M is ") for sentence in found.sentences)


def test_without_rounding_a_merge_is_exact() -> None:
    (merge,) = kinship({**DELTAS, "M": combined(A=0.37, B=0.35, C=0.29)}).merges

    assert weights(merge) == pytest.approx({"A": 0.37, "B": 0.35, "C": 0.29}, abs=1e-4)
    assert merge.residual < 1e-5


def test_unrelated_finetunes_are_no_merges() -> None:
    found = kinship(stored(DELTAS))
    assert (found.merges, found.near_merges, found.duplicates, found.other_bases) == ((), (), (), ())


def slerp(first: Model, second: Model, t: float) -> Model:
    """Of the weights, tensor by tensor, as mergekit does."""
    merged = {}
    for key in SHAPES:
        a, b = BASE[key] + first[key], BASE[key] + second[key]
        angle = torch.arccos((a * b).sum() / (a.norm() * b.norm()))
        merged[key] = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle) - BASE[key]
    return merged


def ties(models: list[Model], density: float) -> Model:
    """Yadav et al. 2023: the largest entries of each delta; of these, the mean of those with the sign of their sum."""
    merged = {}
    for key in SHAPES:
        kept = []
        for model in models:
            least = model[key].abs().flatten().kthvalue(int((1 - density) * model[key].numel()) + 1).values
            kept.append(torch.where(model[key].abs() >= least, model[key], 0.0))
        stack = torch.stack(kept)
        agree = torch.where(stack.sign() == stack.sum(0).sign(), stack, 0.0)
        merged[key] = agree.sum(0) / (agree != 0).sum(0).clamp(min=1)
    return merged


def test_a_spherical_merge_is_nearly_linear() -> None:
    found = kinship(stored({**DELTAS, "M": slerp(DELTAS["A"], DELTAS["B"], 0.3)}))

    (merge,) = found.merges
    assert weights(merge) == pytest.approx({"A": 0.7, "B": 0.3}, abs=0.02)


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_a_merge_by_ties_is_seen_but_not_as_linear(density: float) -> None:
    found = kinship(stored({**DELTAS, "M": ties([DELTAS["A"], DELTAS["B"]], density)}))

    (near,) = found.near_merges
    assert (near.name, set(weights(near)), found.merges) == ("M", {"A", "B"}, ())
    a, b = (weights(near)[name] for name in "AB")
    assert a == pytest.approx(b, abs=0.05)
    assert "a merge that changes or drops entries" in found.sentences[0]


def test_weights_by_matrix_leave_less_over() -> None:
    steps = [key for key in SHAPES if key.endswith("q.weight")]
    mixed = {key: (0.8 if key in steps else 0.2) * DELTAS["A"][key] + 0.5 * DELTAS["B"][key] for key in SHAPES}
    found = kinship({**DELTAS, "M": mixed})

    (fit,) = (*found.merges, *found.near_merges)
    assert fit.residual > 0.1
    assert fit.residual_by_matrix < 1e-4
    assert "coefficients of its own for each matrix" in found.sentences[0]


def test_duplicates_are_equal_or_equal_to_rounding() -> None:
    again = {key: change.clone() for key, change in DELTAS["A"].items()}
    rounded = stored({"B": DELTAS["B"]})["B"]
    found = kinship({**DELTAS, "A2": again, "B2": rounded})

    assert [(group.names, group.equal) for group in found.duplicates] == [(("A", "A2"), True), (("B", "B2"), False)]
    assert found.cosine("A", "A2") == 1.0
    assert found.merges == ()


@pytest.mark.parametrize("seed", range(6))
def test_a_rounded_copy_of_unrounded_weights_is_found_whatever_the_numbers(seed: int) -> None:
    """Such as an adapter and its merge: the difference is just what rounding to the one dtype makes of it."""
    exact = random_model(100 + seed, 0.05)
    found = kinship(
        {"adapter": exact, "merged": stored({"merged": exact})["merged"], "A": DELTAS["A"]}, exact={"adapter"}
    )
    assert [group.names for group in found.duplicates] == [("adapter", "merged")]


def test_a_finetune_without_one_matrix_is_no_merge() -> None:
    """Its cosines are those of a finetune that did not change this matrix."""
    first, *rest = SHAPES
    sum_without_one = {key: combined(A=1, B=1)[key] for key in rest}
    found = kinship({**DELTAS, "M": sum_without_one})
    assert (found.merges, found.near_merges) == ((), ())
    zeros = sum_without_one | {first: torch.zeros(SHAPES[first])}
    assert found.cosine("M", "A") == kinship({**DELTAS, "M": zeros}).cosine("M", "A")


def test_a_finetune_without_change_has_no_cosines() -> None:
    rows = [FleetFinetune(name, name, FleetOutcome.MEASURED, energy=1.0) for name in ("A", "B", "copy")]
    sketch = {
        name: DeltaSketch(LENGTH, {key: encoded_sketch(key, change, LENGTH) for key, change in DELTAS[name].items()})
        for name in "AB"
    }
    found = find_kinship(rows, {**sketch, "copy": DeltaSketch(LENGTH, {})})
    assert found is not None
    assert found.unsketched == ("copy",)
    assert "No cosines of copy: the matrices have no change, or are not those of the others." in found.sentences


def test_what_rounding_cannot_explain_is_no_duplicate() -> None:
    near = {key: change + 0.02 * DELTAS["C"][key] for key, change in DELTAS["A"].items()}
    assert kinship({**DELTAS, "A2": near}).duplicates  # rounding to bfloat16 is as large
    far = {key: change + 0.2 * DELTAS["C"][key] for key, change in DELTAS["A"].items()}
    assert kinship({**DELTAS, "A2": far}).duplicates == ()


def test_models_of_another_base_have_it_in_common() -> None:
    other = random_model(9)
    foreign = {
        name: {key: other[key] + 0.05 * change - BASE[key] for key, change in DELTAS[name].items()} for name in "AB"
    }
    third = {key: each - BASE[key] for key, each in random_model(10).items()}
    found = kinship(
        {"C": DELTAS["C"], "X": foreign["A"], "Y": foreign["B"], "Z": third},
        X=VerdictKind.UNRELATED,
        Y=VerdictKind.UNRELATED,
        Z=VerdictKind.UNRELATED,
    )
    assert found.other_bases == (("X", "Y"),)


def test_neighbours_in_the_map_are_related() -> None:
    related = {**DELTAS, "A2": combined(A=1, D=0.3), "C2": combined(C=1, E=0.4), "A3": combined(A=1, B=0.3)}
    names = kinship(related).names

    for group in ({"A", "A2", "A3"}, {"C", "C2"}):
        places = sorted(names.index(name) for name in group)
        assert places[-1] - places[0] == len(group) - 1


def test_one_without_sketches_is_named() -> None:
    rows = [FleetFinetune(name, name, FleetOutcome.MEASURED, energy=1) for name in "ABCD"]
    numbers = {name: {key: encoded_sketch(key, change, 16) for key, change in DELTAS[name].items()} for name in "AB"}
    found = find_kinship(rows, {name: DeltaSketch(16, each) for name, each in numbers.items()})

    assert found is not None
    assert found.unsketched == ("C", "D")
    assert find_kinship(rows[:1], {}) is None


def test_sketches_of_other_matrices_are_not_compared() -> None:
    other = {f"experts.{key}": change for key, change in DELTAS["A"].items()}
    rows = [FleetFinetune(name, name, FleetOutcome.MEASURED, energy=1) for name in ("A", "B", "other", "part", "same")]
    models = {"A": DELTAS["A"], "B": DELTAS["B"], "other": other, "part": dict(list(DELTAS["C"].items())[:-1])}
    sketches = {
        name: DeltaSketch(16, {key: encoded_sketch(key, change, 16) for key, change in model.items()})
        for name, model in models.items()
    }
    found = find_kinship(rows, {**sketches, "same": DeltaSketch(16, dict.fromkeys(SHAPES, ""))})

    assert found is not None
    assert set(found.names) == {"A", "B", "part"}  # "same" did not change
    assert found.unsketched == ("other", "same")
    assert "No cosines of other and same" in found.sentences[0]


@pytest.mark.parametrize("numbers", ["AAAA", "*", "AACAfwAAgH8=", "AADAfwAAwH8="])
def test_a_stored_sketch_is_checked(numbers: str) -> None:
    stored = DeltaSketch(2, {"a.weight": numbers}).to_json()
    with pytest.raises(ResultsError, match=r"a\.weight"):
        DeltaSketch.from_json(stored)
