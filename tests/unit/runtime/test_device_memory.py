"""How much memory a device has for a job."""

import pytest
import torch

from deltarank.runtime import available_memory
from deltarank.system import memory_limit


def test_on_cuda_it_is_what_is_free_and_what_torch_holds_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (30, 80))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda _: 7)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda _: 5)

    assert available_memory(torch.device("cuda", 0)) == 32


def test_on_a_cpu_it_is_the_limit_of_this_process() -> None:
    assert available_memory(torch.device("cpu")) == memory_limit()
