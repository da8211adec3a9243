"""The smallest rank with a relative error of at most x: against the spectra themselves."""

import json
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deltarank.results import Loss, MatrixResult, Outcome, Reference, Results, Total, Verdict, VerdictKind

spectra = st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=12), min_size=1, max_size=4)


def matrix(
    values: list[float], *, stored: int = 100, ranks: tuple[int, ...] = (1, 4), module: str = "mlp"
) -> MatrixResult:
    """A matrix with these singular values, of which the first ones are stored."""
    squares = np.square(np.sort(values)[::-1])
    losses = [
        Loss.from_energy(rank, lost=math.fsum(squares[rank:]), total=math.fsum(squares), entries=100) for rank in ranks
    ]
    return MatrixResult(
        name="w",
        layer=0,
        module=module,
        shape=(len(values), 100),
        outcome=Outcome.MEASURED,
        dtype="float32",
        max_rank=len(values),
        frobenius=math.sqrt(math.fsum(squares)),
        base_frobenius=1.0,
        singular_values=tuple(np.sqrt(squares)[:stored].tolist()),
        losses=tuple(losses),
    )


def relative_error(spectra: list[list[float]], rank: int) -> float:
    squares = [np.square(np.sort(values)[::-1]) for values in spectra]
    return math.sqrt(sum(each[rank:].sum() for each in squares) / sum(each.sum() for each in squares))


@given(spectra, st.sampled_from([0.5, 0.2, 0.1, 0.02]))
def test_it_is_the_first_rank_of_all_spectra_together(spectra: list[list[float]], error: float) -> None:
    found = Total.of([matrix(values) for values in spectra]).rank_for_error(error)

    if sum(max(values) for values in spectra) < 1e-6:
        return
    assert found
    assert relative_error(spectra, found) <= error + 1e-6
    assert found == 1 or relative_error(spectra, found - 1) > error - 1e-6


def test_beyond_the_stored_values_it_is_a_measured_rank_or_unknown() -> None:
    total = Total.of([matrix([1.0] * 10, stored=2, ranks=(1, 4, 9))])

    assert total.rank_for_error(0.9) == 2
    assert total.rank_for_error(0.8) == 4
    assert total.rank_for_error(0.5) == 9
    assert total.rank_for_error(0.1) is None


def test_a_low_rank_needs_no_more_than_itself_however_small_the_error() -> None:
    low = matrix([3.0, 2.0, 1.0, 0.0, 0.0, 0.0], ranks=(3,))
    assert Total.of([low]).rank_for_error(0.0) == 3


def test_nothing_changed_and_nothing_measured() -> None:
    assert Total.of([matrix([0.0, 0.0])]).rank_for_error(0.1) == 0
    assert Total.of([]).rank_for_error(0.1) is None


def test_results_state_it_of_the_whole_and_of_each_module() -> None:
    flat, steep = matrix([1.0] * 6, module="mlp"), matrix([1.0] + [0.0] * 5, module="attn")
    nowhere = Reference("nowhere")
    results = Results(
        nowhere, nowhere, {"ranks": [1, 4]}, (flat, steep), (), Verdict(VerdictKind.FULL, ("x",)), "0", "now"
    )
    plain = json.loads(results.to_json())["totals"]
    whole, attention = (
        {each["relative_error"]: each["rank"] for each in total["rank_for_error"]}
        for total in (plain, plain["by_module"]["attn"])
    )

    assert whole[0.5] == results.rank_for_error(0.5) == 5
    assert attention == dict.fromkeys((0.5, 0.3, 0.2, 0.1, 0.05, 0.01), 1)
    assert results.totals.by_module["mlp"].rank_for_error(0.5) == 5
