"""The options of `extract`: one description for two functions, checked before anything is read."""

from typing import Any

import pytest

from deltarank.errors import JobError, UsageError
from deltarank.jobs.extract import ExtractOptions
from deltarank.results import Loss, Total
from deltarank.servers import server_names
from refusals import refused


def totals(errors: dict[int, float]) -> Total:
    losses = [Loss.from_energy(rank, lost=error**2, total=1.0, entries=100) for rank, error in errors.items()]
    return Total(1, 100, 1.0, 1.0, None, tuple(losses), activation_loss=None, _needed=lambda share: None)


def test_options_are_written_as_they_were_given() -> None:
    options = ExtractOptions(rank="auto", max_error=0.3, include=("*up*",), exclude=("a", "b"))

    assert list(options.to_plain().items()) == [
        ("rank", "auto"),
        ("max_error", 0.3),
        ("server", "portable"),
        ("dtype", None),
        ("device", "cpu"),
        ("include", ["*up*"]),
        ("exclude", ["a", "b"]),
    ]


@pytest.mark.parametrize(
    ("keywords", "slug"),
    [
        ({"rank": 513}, "illegal-rank"),
        ({"rank": 600, "server": "vllm"}, "illegal-rank"),
        ({"rank": 0, "server": "peft"}, "bad-ranks"),
        ({"rank": True, "server": "peft"}, "bad-ranks"),
        ({"rank": "many"}, "bad-ranks"),
        ({"rank": "auto"}, "bad-max-error"),
        ({"rank": 8, "max_error": 0.3}, "bad-max-error"),
        ({"rank": "auto", "max_error": 1.5}, "bad-max-error"),
        ({"rank": "auto", "max_error": float("nan")}, "bad-max-error"),
        ({"server": "tgi"}, "bad-server"),
        ({"dtype": "int8"}, "bad-dtype"),
        ({"device": "abacus"}, "bad-device"),
    ],
)
def test_a_value_that_is_not_usable_is_refused(keywords: dict[str, Any], slug: str) -> None:
    with refused(slug, UsageError):
        ExtractOptions(**keywords)


@pytest.mark.parametrize("server", server_names())
def test_auto_chooses_among_the_ranks_that_the_server_accepts(server: str) -> None:
    options = ExtractOptions(rank="auto", max_error=0.3, server=server)

    assert options.fixed_rank is None
    for rank in options.solver_options.ranks:
        assert ExtractOptions(rank=rank, server=server).fixed_rank == rank


def test_auto_takes_the_smallest_rank_that_keeps_to_the_error() -> None:
    options = ExtractOptions(rank="auto", max_error=0.3)

    assert options.smallest_servable_rank(totals({32: 0.1, 8: 0.5, 16: 0.3})) == 16


@pytest.mark.parametrize(("error", "cure"), [(0.411, "--max-error 0.42, or"), (0.995, "Choose a rank with --rank.")])
def test_where_no_rank_is_enough_the_cure_is_an_error_that_is_accepted(error: float, cure: str) -> None:
    options = ExtractOptions(rank="auto", max_error=0.3, server="vllm")
    with refused("no-servable-rank", JobError, match="Even rank 512, the largest for vLLM") as none:
        options.smallest_servable_rank(totals({256: 0.999, 512: error}))

    assert cure in none.value.cure
