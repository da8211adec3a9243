"""Options: the keywords of a function, the fields of its options and its signature name the same things."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

import pytest

import deltarank
from deltarank.errors import UsageError
from deltarank.jobs.compare import CompareKeywords, CompareOptions
from deltarank.jobs.extract import ExtractKeywords, ExtractOptions
from deltarank.jobs.outputs import OutputsKeywords, OutputsOptions
from deltarank.runtime import InputKeywords, PairRefs, SolverOptions, parse_keywords
from refusals import refused

JOBS = {
    deltarank.compare: (CompareOptions, CompareKeywords),
    deltarank.plan: (CompareOptions, CompareKeywords),
    deltarank.extract: (ExtractOptions, ExtractKeywords),
    deltarank.plan_extraction: (ExtractOptions, ExtractKeywords),
    deltarank.outputs: (OutputsOptions, OutputsKeywords),
    deltarank.plan_outputs: (OutputsOptions, OutputsKeywords),
}


@pytest.mark.parametrize("function", JOBS, ids=lambda function: function.__name__)
def test_the_signature_shows_every_option_with_its_default(function: Callable[..., Any]) -> None:
    options, keywords = JOBS[function]
    shown = inspect.signature(function).parameters
    defaults = {field.name: field.default for field in fields(options)}

    assert MISSING not in defaults.values()
    assert keywords.__annotations__.keys() == defaults.keys() | InputKeywords.__annotations__.keys()
    assert {name: shown[name].default for name in defaults} == defaults
    assert shown["fetch"].default == inspect.signature(PairRefs.of).parameters["fetch"].default
    assert shown.keys() - keywords.__annotations__.keys() <= {"base", "finetune", "output", "force", "progress"}


def test_an_unknown_keyword_is_refused() -> None:
    with pytest.raises(TypeError, match=r"plan\(\) got an unexpected keyword argument 'rank'"):
        deltarank.plan("base", "finetune", rank=8)  # type: ignore[call-arg]


def test_inputs_and_options_are_told_apart_by_their_names() -> None:
    refs, options = parse_keywords(
        "base", "finetune", {"fetch": "stream", "revision": "v1", "ranks": [8]}, CompareOptions
    )

    assert (refs.fetch, refs.finetune.revision, options.ranks) == ("stream", "v1", (8,))


def test_ranks_are_stored_sorted_each_once_and_globs_as_a_tuple() -> None:
    options = SolverOptions(ranks=(64, 8, 64), include="*mlp*")  # type: ignore[arg-type]

    assert options.ranks == (8, 64)
    assert options.include == ("*mlp*",)


@pytest.mark.parametrize(
    ("values", "slug"),
    [
        ({"ranks": ()}, "bad-ranks"),
        ({"ranks": (rank for rank in ())}, "bad-ranks"),
        ({"ranks": None}, "bad-ranks"),
        ({"ranks": (2**40,)}, "bad-ranks"),
        ({"tolerance": "1e-4"}, "bad-tolerance"),
        ({"audit": "3"}, "bad-number"),
        ({"audit": 1.5}, "bad-number"),
        ({"ranks": (0,)}, "bad-ranks"),
        ({"ranks": (True,)}, "bad-ranks"),
        ({"solver": "guess"}, "bad-solver"),
        ({"dtype": "int8"}, "bad-dtype"),
        ({"tolerance": 0.0}, "bad-tolerance"),
        ({"tolerance": float("nan")}, "bad-tolerance"),
        ({"device": "abacus"}, "bad-device"),
        ({"audit": -1}, "bad-number"),
    ],
)
def test_invalid_options_are_refused(values: dict[str, Any], slug: str) -> None:
    with refused(slug, UsageError):
        CompareOptions(**values)
