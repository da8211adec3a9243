"""Every kind of page that deltarank writes, made of invented results."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import builders
import outputs_builders
from blind_builders import score, voter
from some_fleets import made_up_fleet

import deltarank
from blind_voters import write_answers
from deltarank.report import endpoints_page, fleet_html, page_html
from deltarank.results import (
    AnswerPair,
    Capabilities,
    Endpoint,
    EndpointApi,
    EndpointResults,
    EndpointsFound,
    EndpointTest,
    EndpointTestName,
    EndpointVerdict,
    EndpointVerdictKind,
    EvidencePoint,
    Interval,
    VerdictKind,
)

SENTENCES = (
    "Bigger-Body-12b is a full finetune or a merge of full finetunes.",
    "Full finetune or merge: the change has more directions than a LoRA can hold.",
    "Rank needed: 320 keeps 90 % of the change, and no servable rank keeps 99 %.",
    "Not in a LoRA: 4.2 % of the whole change, in norms and the embedding.",
    "The change is 9.1 % of the weights.",
)


def compare() -> str:
    """The weights of one run."""
    odd = [builders.not_finite(matrix) for matrix in builders.model(layers=1)[:1]]
    matrices = [*odd, *builders.model(layers=3)[1:]]
    return page_html([builders.results(matrices, sentences=SENTENCES)])


def outputs() -> str:
    """One run with outputs, and a blind test."""
    tests = (score(voter("Ada"), voter("Ben"), together=voter("together"), notes=("Ada was careless.",)),)
    run = builders.results(
        builders.model(layers=3), sentences=SENTENCES, outputs=outputs_builders.outputs(), blind=tests
    )
    return page_html([run])


def runs() -> str:
    """Three runs, two of them with outputs."""
    made = [
        builders.results(builders.model(builders.low_rank, layers=2), name="a/Lora", kind=VerdictKind.MERGED_LORA),
        builders.results(builders.model(layers=2), name="a/Full", outputs=outputs_builders.outputs()),
        builders.results(
            builders.model(builders.merge, layers=2), name="a/Merged", outputs=outputs_builders.outputs(scale=2)
        ),
    ]
    return page_html(made)


def many_runs(runs: int = 12, layers: int = 2) -> str:
    """More runs than there are colours."""
    return page_html(some_runs(runs, layers))


def some_runs(runs: int, layers: int) -> list[deltarank.Results]:
    """Runs over one base, of three kinds."""
    spectra = (builders.flat, builders.merge, builders.low_rank)
    return [
        builders.results(
            [
                replace(matrix, losses=_shifted(matrix, i / runs))
                for matrix in builders.model(spectra[i % 3], layers=layers)
            ],
            name=f"someone/Body-{i:02}-12b",
        )
        for i in range(runs)
    ]


def _shifted(matrix, by: float):
    return tuple(
        deltarank.Loss.from_energy(
            loss.rank, lost=loss.energy_lost * (1 - 0.6 * by), total=1.0, entries=math.prod(matrix.shape)
        )
        for loss in matrix.losses
    )


def fleet() -> str:
    """Two families of finetunes, with a plan and their relatives."""
    return fleet_html(made_up_fleet(24))


def endpoints() -> str:
    """Two endpoints that differ."""
    capabilities = Capabilities(EndpointApi.CHAT, top_logprobs=20, certainty=0.41, seed=True, honoured={"top_p": True})
    points = tuple(EvidencePoint(40 * i, 0.4 * i, -0.3 * i, 0.1, 0.01, 0.02) for i in range(1, 30))
    test = EndpointTest(
        name=EndpointTestName.FIRST_TOKEN_LOGPROBS,
        n=len(points),
        unit="nats per token",
        statistic=0.1,
        interval=Interval(0.1, 0.08, 0.13),
        tolerance=0.02,
        p=0.0001,
        e_value=11000.0,
        e_value_same=0.001,
        effect=0.08,
        control_aa=0.01,
        control_bb=0.02,
        evidence=points,
    )
    found = EndpointsFound(
        a=Endpoint("body-12b", "http://localhost:8080/v1", capabilities, 80, 4000, 900),
        b=Endpoint("body-12b-r64", "https://llm.example.org/v1", capabilities, 80, 4000, 900),
        template=(),
        tests=(test,),
        verdict=EndpointVerdict(
            EndpointVerdictKind.DIFFERENT,
            ("A and B are different models.", "They are at least 0.08 nats per token apart."),
        ),
        answers=(AnswerPair("Say a word.", "Harbour.", "Boats, and a very long line without an end " * 3),),
    )
    settings = {"alpha": 0.01}
    return endpoints_page(EndpointResults(found, settings, tool_version="0.1.0", created="2026-11-29T00:00:00+00:00"))


def vote(folder: Path) -> str:
    """The page for the people of a blind test."""
    files = {name: write_answers(folder / f"{name}.jsonl", seed=i) for i, name in enumerate(("a", "b", "base"))}
    made = deltarank.make_blind_test(output=folder / "test", pairs=4, preferences=2, **files)
    return made.page.read_text(encoding="utf-8")


PAGES: dict[str, Callable[[], str]] = {
    "compare": compare,
    "outputs": outputs,
    "runs": runs,
    "many-runs": many_runs,
    "fleet": fleet,
    "endpoints": endpoints,
}
"""All but the page of a blind test, which needs a folder."""
