"""How much memory `outputs` plans with."""

from __future__ import annotations

import pytest
import torch

from deltarank.jobs.outputs.plan import room_on
from deltarank.system import memory_limit


def test_on_cuda_what_is_free_counts_not_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (3, 80))

    assert room_on(torch.device("cuda", 0)) == 3


def test_on_a_cpu_it_is_the_limit_of_this_process() -> None:
    assert room_on(torch.device("cpu")) == memory_limit()
