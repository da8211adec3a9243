"""What a run found out: in and out of JSON unchanged, and totals by addition."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltarank.errors import ResultsError
from deltarank.results import (
    DEFAULT_OUTPUTS_RANKS,
    DEFAULT_RANKS,
    SERVABLE_RANKS,
    AuditRow,
    Loss,
    MatrixResult,
    Outcome,
    Reference,
    Results,
    Skipped,
    Total,
    Verdict,
    VerdictKind,
    headline_rank,
)
from deltarank.system import Default
from refusals import refused

shares = st.floats(0, 1)
maybe = st.none() | st.floats(0, 1e9)
names = st.text(max_size=20)  # names come from checkpoints: any text

references = st.builds(Reference, names, st.none() | names, st.dictionaries(names, st.integers(0, 10**13), max_size=3))
RANKS = (1, 8, 64)
losses = st.tuples(*(st.builds(Loss, st.just(rank), st.floats(0, 1e100), shares, shares, shares) for rank in RANKS))
matrices = st.builds(
    MatrixResult,
    name=names,
    layer=st.none() | st.integers(0, 200),
    module=names,
    shape=st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
    outcome=st.sampled_from(Outcome),
    dtype=names,
    max_rank=st.integers(0, 9000),
    relative_norm=maybe,
    mean_abs=maybe,
    frobenius=st.floats(0, 1e100),
    base_frobenius=st.floats(0, 1e100),
    stable_rank=maybe,
    effective_rank=maybe,
    signal_rank=st.none() | st.integers(0, 9000),
    rounding_floor=maybe,
    noise_edge=maybe,
    solver=st.none() | names,
    singular_values=st.lists(st.floats(0, 1e9), max_size=4).map(tuple),
    losses=losses,
    curve=st.lists(st.tuples(st.integers(1, 512), shares), max_size=3).map(tuple),
    reason=st.none() | names,
    seconds=maybe,
)
skips = st.builds(
    Skipped, names, st.sampled_from(Outcome), names, st.lists(st.integers(0, 99), max_size=3).map(tuple), maybe, maybe
)
runs = st.builds(
    Results,
    base=references,
    finetune=references,
    settings=st.fixed_dictionaries({"ranks": st.just(list(RANKS)), "device": names, "seconds": maybe}),
    matrices=st.lists(matrices, max_size=3).map(tuple),
    skipped=st.lists(skips, max_size=3).map(tuple),
    verdict=st.builds(
        Verdict, st.sampled_from(VerdictKind), st.lists(names, max_size=3).map(tuple), st.none() | st.integers(0, 99)
    ),
    tool_version=names,
    created=names,
    notes=st.lists(names, max_size=2).map(tuple),
    audit=st.lists(st.builds(AuditRow, names, st.integers(1, 512), shares, shares), max_size=2).map(tuple),
)


def measured(*squares: float, ranks: tuple[int, ...] = (1, 2), name: str = "m", module: str = "mlp") -> MatrixResult:
    """A matrix of this spectrum, squared."""
    total = math.fsum(squares)
    entries = len(squares) ** 2
    return MatrixResult(
        name=name,
        layer=0,
        module=module,
        shape=(len(squares), len(squares)),
        outcome=Outcome.MEASURED if total else Outcome.IDENTICAL,
        dtype="float32",
        max_rank=len(squares),
        frobenius=math.sqrt(total),
        base_frobenius=10.0,
        rounding_floor=0.5,
        losses=tuple(Loss.from_energy(r, lost=math.fsum(squares[r:]), total=total, entries=entries) for r in ranks),
    )


def run_of(*rows: MatrixResult) -> Results:
    return Results(
        base=Reference("org/base", "abc", {"model.safetensors": 10}),
        finetune=Reference("org/tuned"),
        settings={"ranks": [1, 2]},
        matrices=rows,
        skipped=(),
        verdict=Verdict(VerdictKind.FULL, ("tuned is a full finetune.",)),
        tool_version="0.1.0",
        created="2026-11-24T00:00:00+00:00",
    )


@settings(max_examples=60, deadline=None)
@given(runs)
def test_json_is_strict_and_gives_back_an_equal_run(run: Results) -> None:
    """No NaN, no Infinity: jq and browsers read it."""
    json.loads(run.to_json(), parse_constant=pytest.fail)

    assert Results.from_json(run.to_json()) == run


def test_json_has_a_matrix_a_line() -> None:
    """What names say cannot move a line: new lines are escaped."""
    run = run_of(*(measured(4, 1, name=name) for name in ("a", '\n "matrices": []', "b")))
    lines = [line for line in run.to_json().splitlines() if line.startswith("  {")]

    assert [line.strip().rstrip(",") for line in lines] == [json.dumps(matrix) for matrix in run.to_plain()["matrices"]]
    assert Results.from_json(run.to_json()) == run


def test_json_has_the_order_of_the_contract() -> None:
    assert " ".join(run_of(measured(4, 1)).to_plain()) == (
        "format_version tool_version created base finetune settings matrices skipped totals verdict notes audit "
        "calibration_text adapter outputs blind"
    )


def test_a_file_gives_back_an_equal_run_byte_for_byte(tmp_path: Path) -> None:
    run = run_of(measured(4, 1), measured(1e-9, 1e-17))
    before = run.save(tmp_path / "results.json").read_bytes()

    assert Results.load(tmp_path / "results.json") == Results.load(tmp_path) == run
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert Results.load(tmp_path).save(tmp_path / "results.json").read_bytes() == before


def test_fields_of_later_versions_are_ignored() -> None:
    data = run_of(measured(4, 1)).to_plain()
    data["matrices"][0]["colour"] = "red"
    data["mood"] = "good"

    assert Results.from_json(json.dumps(data)) == run_of(measured(4, 1))


def test_totals_are_added_up_again_never_believed() -> None:
    data = run_of(measured(4, 1)).to_plain()
    data["totals"]["losses"][0]["energy_kept"] = 1.0

    assert Results.from_json(json.dumps(data)).totals.whole.loss(1).energy_kept == pytest.approx(0.8)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", "[" * 100_000, '{"format_version": 2}', '{"format_version": 1}', '{"matrices": []}'],
)
def test_a_text_that_is_no_results_file_is_refused(text: str) -> None:
    with refused("results-unreadable", ResultsError) as caught:
        Results.from_json(text)

    assert caught.value.cure


@pytest.mark.parametrize("damage", ["base", "settings", "matrices", "verdict"])
def test_a_results_file_that_lacks_a_part_is_refused(damage: str) -> None:
    data = run_of(measured(4, 1)).to_plain()
    del data[damage]

    with pytest.raises(ResultsError):
        Results.from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["matrices", 0, "losses", 1, "rank"], "2", "Expected `int`, got `str` - at `$.matrices[0].losses[1].rank`"),
        (["matrices", 0, "shape"], [True, 2], "Expected `int`, got `bool` - at `$.matrices[0].shape[0]`"),
        (["matrices", 0, "shape"], [2], "'m' has 1 dimensions, not two"),
        (["matrices", 0, "shape", 0], 2**63, "at `$.matrices[0].shape[0]`"),
        (["matrices", 0, "max_rank"], -1, "Expected `int` >= 0 - at `$.matrices[0].max_rank`"),
        (["matrices", 0, "frobenius"], 1e200, "at `$.matrices[0].frobenius`"),
        (["matrices", 0, "mean_abs"], math.nan, "JSON is malformed"),
        (["matrices", 0, "losses", 0, "energy_kept"], 1.5, "at `$.matrices[0].losses[0].energy_kept`"),
        (["matrices", 0, "name"], "\ud800", "Not the results"),
        (["matrices", 0, "losses"], [], "the losses of 'm' are not at the ranks of the run"),
        (["matrices", 0, "outcome"], "splendid", "Invalid enum value 'splendid' - at `$.matrices[0].outcome`"),
        (["matrices"], ["x"], "Expected `object`, got `str` - at `$.matrices[0]`"),
        (["settings", "ranks"], [2, 1], "ascending order"),
        (["settings", "ranks"], ["1", "2"], "expected a list of ranks"),
        (["base", "ref"], None, "Expected `str`, got `null` - at `$.base.ref`"),
        (["verdict", "sentences"], "x", "Expected `array`, got `str` - at `$.verdict.sentences`"),
        (["format_version"], 2, "format_version is 2; this deltarank reads 1"),
        (["format_version"], True, "format_version is True"),
    ],
)
def test_the_message_names_the_field_that_is_wrong(path: list[str | int], value: object, message: str) -> None:
    data = run_of(measured(4, 1)).to_plain()
    holder: Any = data
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    with pytest.raises(ResultsError, match=re.escape(message)):
        Results.from_json(json.dumps(data))


def test_a_whole_number_is_a_number() -> None:
    data = run_of(measured(4, 1)).to_plain()
    data["matrices"][0]["mean_abs"] = 3

    assert Results.from_json(json.dumps(data)).matrices[0].mean_abs == 3.0


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = run_of(measured(4, 1)).save(tmp_path / "results.json")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        replace(run_of(measured(4, 1)), settings={"ranks": [1, 2], "tolerance": math.nan}).save(path)

    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="Cannot read"):
        Results.load(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResultsError, match="Cannot read"):
        Results.load(tmp_path / "binary.json")


@given(st.lists(st.lists(st.floats(0, 1e6), min_size=2, max_size=6), min_size=1, max_size=4))
def test_a_total_equals_the_loss_of_the_matrices_laid_end_to_end(spectra: list[list[float]]) -> None:
    rows = [measured(*sorted(squares, reverse=True)) for squares in spectra]
    whole = Total.of(rows)
    energy = math.fsum(math.fsum(squares) for squares in spectra)
    for rank in (1, 2):
        kept = math.fsum(math.fsum(sorted(squares, reverse=True)[:rank]) for squares in spectra)
        lost = energy - kept

        assert whole.loss(rank).energy_lost * energy == pytest.approx(lost, rel=1e-6, abs=1e-6 * energy)
        assert whole.loss(rank).mse * whole.entries == pytest.approx(lost, rel=1e-6, abs=1e-6 * energy)


def test_percentages_are_not_averaged() -> None:
    large, small = measured(900, 100), measured(1, 1)

    # The mean of 10 % and 50 % would be 30 %.
    assert Total.of([large, small]).loss(1).energy_lost == pytest.approx(101 / 1002)


def test_identical_matrices_count_and_weigh_nothing() -> None:
    whole = Total.of([measured(3, 1), measured(0, 0)])

    assert whole.matrices == 2
    assert whole.loss(1).energy_lost == pytest.approx(0.25)


def test_a_matrix_without_losses_is_left_out_of_totals() -> None:
    lost = replace(measured(3, 1), outcome=Outcome.NOT_FINITE, losses=())

    assert Total.of([measured(3, 1), lost]) == Total.of([measured(3, 1)])


def test_modules_are_totalled_apart() -> None:
    run = run_of(measured(3, 1, module="mlp"), measured(1, 1, module="attn"), measured(5, 1, module="mlp"))

    assert {name: total.matrices for name, total in run.totals.by_module.items()} == {"mlp": 2, "attn": 1}


def test_a_total_of_nothing_is_empty() -> None:
    whole = Total.of([])

    assert (whole.matrices, whole.losses, whole.relative_norm, whole.rounding_floor) == (0, (), None, None)


@given(st.floats(1e-14, 1, exclude_max=True))
def test_a_small_loss_keeps_its_digits(share: float) -> None:
    loss = Loss.from_energy(8, lost=share, total=1.0, entries=4)

    assert loss.energy_lost == pytest.approx(share, rel=1e-12)
    assert loss.cosine_distance == pytest.approx(-math.expm1(0.5 * math.log1p(-share)), rel=1e-9)


@given(st.floats(0, 1), st.floats(0, 1))
def test_all_figures_grow_with_the_energy_lost(one: float, two: float) -> None:
    less, more = (Loss.from_energy(8, lost=lost, total=1.0, entries=4) for lost in sorted((one, two)))

    assert less.mse <= more.mse
    assert less.cosine_distance <= more.cosine_distance
    assert less.relative_error <= more.relative_error
    assert less.energy_kept >= more.energy_kept


def test_no_change_loses_nothing() -> None:
    assert Loss.from_energy(8, lost=0.0, total=0.0, entries=4) == Loss(8, 0.0, 0.0, 0.0, 1.0)


def test_rounding_below_zero_is_not_a_negative_loss() -> None:
    assert Loss.from_energy(8, lost=-1e-9, total=1.0, entries=4).relative_error == 0.0


def test_a_rank_that_was_not_asked_for_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="rank 3 was not measured"):
        measured(3, 1).loss(3)
    with pytest.raises(KeyError, match="rank 3 was not measured"):
        Total.of([measured(3, 1)]).loss(3)


def test_rows_are_flat_and_one_a_matrix_and_rank() -> None:
    rows = run_of(measured(3, 1), measured(5, 1)).rows()

    assert len(rows) == 4
    assert {type(value) for row in rows for value in row.values()} <= {str, int, float, type(None)}
    assert [row["rank"] for row in rows] == [1, 2, 1, 2]


def test_a_repr_is_one_short_line() -> None:
    shown = repr(run_of(measured(4, 1)))

    assert "tuned - base: 1 matrices, full; rank 1: 80 % kept" in shown
    assert "\n" not in shown


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_its_sentence(outcome: Outcome) -> None:
    assert outcome.sentence


@pytest.mark.parametrize(
    ("ref", "name"), [("org/name", "name"), ("/a/b/", "b"), ("x/m.safetensors", "m"), (".safetensors", ".safetensors")]
)
def test_short_names(ref: str, name: str) -> None:
    assert Reference(ref).short_name == name


def test_default_ranks_are_servable() -> None:
    assert set(DEFAULT_RANKS) <= set(SERVABLE_RANKS)


def test_rows_make_a_data_frame_as_the_library_page_shows() -> None:
    frame = pandas.DataFrame(run_of(measured(3, 1, name="a"), measured(1, 1, name="b")).rows())
    worst = frame[frame["rank"] == 1].nsmallest(1, "energy_kept")

    assert list(frame["rank"]) == [1, 2, 1, 2]
    assert worst[["name", "energy_kept"]].values.tolist() == [["b", 0.5]]


@pytest.mark.parametrize("side", [512, 576, 1024, 8192])
def test_every_command_states_one_rank_first(side: int) -> None:
    """`compare`, `outputs` and `extract` with their default ranks, on matrices of a language model."""
    ranks = {headline_rank(DEFAULT_RANKS, side), headline_rank(DEFAULT_OUTPUTS_RANKS, side), Default.ADAPTER_RANK}

    assert ranks == {64}
    assert headline_rank(DEFAULT_RANKS, 256) == 8
