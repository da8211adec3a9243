"""Ranks as people write them, in the library and on the command line."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltarank.errors import UsageError
from deltarank.results import parse_ranks
from refusals import refused


@pytest.mark.parametrize(
    ("written", "ranks"),
    [
        (64, (64,)),
        ("64", (64,)),
        (np.int64(8), (8,)),
        ("64,8,16", (8, 16, 64)),
        (["64", "8 16"], (8, 16, 64)),
        ([16, "64,8"], (8, 16, 64)),
        ((16, 8, 16), (8, 16)),
        (range(1, 4), (1, 2, 3)),
        (" 8, 8,08 ", (8,)),
        ("8,", (8,)),
    ],
)
def test_ranks(written: Any, ranks: tuple[int, ...]) -> None:
    assert parse_ranks(written) == ranks


@pytest.mark.parametrize(
    "wrong",
    ["0", "-1", "x", "", ",", "1.0", "1_0", "\u0663", "8;16", "9" * 5000, 0, True, 1.5, None, 2**31, [], [8, ""]],
)
def test_an_invalid_rank_is_refused(wrong: Any) -> None:
    with refused("bad-ranks", UsageError) as caught:
        parse_ranks(wrong)
    with refused("bad-ranks", UsageError):
        parse_ranks([8, wrong] if wrong != [] else wrong)

    assert caught.value.exit_code == 2


@given(st.sets(st.integers(1, 10**6), min_size=1))
def test_ranks_survive_being_written_down(ranks: set[int]) -> None:
    assert parse_ranks(",".join(map(str, ranks))) == parse_ranks(ranks) == tuple(sorted(ranks))
