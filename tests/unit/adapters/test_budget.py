"""The budget: shares that add up to 1, and a sentence that names what the server cannot take."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltarank.adapters import IF_INCLUDED, Budget, MatrixEnergies, OmittedTensor
from deltarank.results import from_record
from deltarank.servers import get_server

ENERGIES = st.floats(0, 1e6)


ON_REQUEST = f"the output head: {IF_INCLUDED}"


def left(name: str, energy: float | None, kind: str = "norm", reason: str = "a reason") -> OmittedTensor:
    return OmittedTensor(name, kind, reason, energy)


@given(
    st.lists(st.tuples(ENERGIES, st.floats(0, 1), st.floats(0, 1)), max_size=5),
    st.lists(ENERGIES, max_size=3),
    st.lists(st.one_of(st.none(), ENERGIES), max_size=4),
)
def test_shares_add_up_to_one(
    matrices: list[tuple[float, float, float]], carried: list[float], others: list[float | None]
) -> None:
    energies = [MatrixEnergies(energy, energy * lost * part, energy * lost) for energy, lost, part in matrices]
    budget = Budget.of(energies, carried, [left(str(i), energy) for i, energy in enumerate(others)])

    assert math.isclose(budget.kept + budget.truncated + budget.rounded + budget.left_out, 1, abs_tol=1e-9)
    assert math.isclose(math.fsum(t.share or 0 for t in budget.tensors), budget.left_out, abs_tol=1e-9)


def test_the_sentence_states_where_the_change_went() -> None:
    others = [
        left("a", 2.0),
        left("b", 1.0),
        left("h", 4.0, "lm_head", ON_REQUEST),
        left("tokens", None, "added tokens"),
    ]
    budget = Budget.of([MatrixEnergies(93.0, 22.0, 22.0)], [], others)

    assert budget.sentence(get_server("vllm"), 64) == (
        "keeps 71 % of the change in the weights; 22 % is truncated at rank 64; 7 % is in 3 tensors that vLLM "
        "cannot load (norms) or loads only if included by name (lm_head); 1 tensor is not counted (added tokens)"
    )


def test_what_a_server_loads_if_included_is_not_called_impossible() -> None:
    budget = Budget.of([MatrixEnergies(9.0, 0.0, 0.0)], [], [left("h", 1.0, "lm_head", ON_REQUEST)])

    assert budget.sentence(get_server("vllm"), 8) == (
        "keeps 90 % of the change in the weights; 10 % is in 1 tensor that vLLM loads only if included by name "
        "(lm_head)"
    )


def test_a_head_that_was_included_and_is_refused_is_not_asked_for_again() -> None:
    budget = Budget.of([MatrixEnergies(9.0, 0.0, 0.0)], [], [left("h", 1.0, "lm_head", "of this model type")])

    assert budget.sentence(get_server("vllm"), 8) == (
        "keeps 90 % of the change in the weights; 10 % is in 1 tensor that vLLM cannot load (lm_head)"
    )


def test_what_a_server_never_takes_is_named() -> None:
    others = [left("a", 2.0), left("b", 1.0), left("h", 4.0, "embedding")]
    budget = Budget.of([MatrixEnergies(93.0, 22.0, 22.0)], [], others)

    assert budget.sentence(get_server("portable"), 64) == (
        "keeps 71 % of the change in the weights; 22 % is truncated at rank 64; 7 % is in 3 tensors that a portable "
        "adapter leaves out (embeddings and norms)"
    )


def test_tensors_are_sorted_by_share_and_unknown_ones_come_last() -> None:
    budget = Budget.of([], [], [left("u", None), left("a", 1.0), left("b", 3.0)])

    assert [(t.name, t.share) for t in budget.tensors] == [("b", 0.75), ("a", 0.25), ("u", None)]


def test_factors_that_lead_away_from_the_weights_keep_nothing() -> None:
    """A calibrated adapter may be nearer in its predictions, and farther in its weights than the base."""
    plain = Budget.of([MatrixEnergies(total=10.0, truncated=2.0, lost=2.0)], [], [])
    budget = plain.calibrated_to(-5.0)
    assert (budget.kept, budget.fitted) == pytest.approx((-0.5, 1.3))
    assert budget.why_negative == "negative: the difference that is left has 1.5 times the energy of the change"
    assert plain.why_negative == ""
    sentence = budget.sentence(get_server("vllm"), 2)
    assert (
        "keeps nothing of the change in the weights: the difference that is left has 1.5 times its energy" in sentence
    )


@pytest.mark.parametrize(
    ("energy_kept", "kept", "fitted"), [(-59.86, "-60 %", "104 %"), (44.31, "44 %", "0.3 %"), (38.0, "38 %", "6.6 %")]
)
def test_the_same_share_is_rounded_alike_whatever_the_factors_keep(energy_kept: float, kept: str, fitted: str) -> None:
    plain = Budget.of([MatrixEnergies(71.668, 27.047, 27.047)], [], [left("h", 28.332, "lm_head")])
    assert plain.percents == ["45 %", "27 %", "0 %", "0 %", "28 %"]
    assert plain.calibrated_to(energy_kept).percents == [kept, "27 %", "0 %", fitted, "28 %"]


def test_without_a_change_everything_is_kept() -> None:
    budget = Budget.of([MatrixEnergies(0.0, 0.0, 0.0)], [], [left("u", None)])

    assert (budget.kept, budget.truncated, budget.rounded, budget.left_out) == (1, 0, 0, 0)
    assert budget.sentence(get_server("peft"), 8) == "changes nothing, since both checkpoints contain the same numbers"


@pytest.mark.parametrize("server_name", ["portable", "vllm"])
def test_it_comes_back_equal(server_name: str) -> None:
    budget = Budget.of([MatrixEnergies(9.0, 2.0, 3.0)], [1.0], [left("a", 2.0), left("b", None)])

    assert from_record(Budget, budget.to_plain()) == budget
    assert from_record(Budget, budget.to_plain()).sentence(get_server(server_name), 8)
