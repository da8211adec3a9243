"""What libraries say while they are imported does not reach a user's terminal."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings

import pytest

from deltarank.system import import_silently, silence_logging

LOADS_A_MODEL = """
import deltarank.models, torch
from transformers import AutoModelForCausalLM, LlamaConfig
sizes = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
config = LlamaConfig(**sizes)
weights = AutoModelForCausalLM.from_config(config).state_dict()
deltarank.models.transformers_logging.logging.disable_progress_bar()
AutoModelForCausalLM.from_config(config).from_pretrained(None, config=config, state_dict=weights)
deltarank.models.get_yardstick("nf4")
"""


@pytest.mark.slow
def test_a_model_is_loaded_without_a_word() -> None:
    done = subprocess.run([sys.executable, "-c", LOADS_A_MODEL], capture_output=True, text=True, timeout=300)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_remarks_are_heard_again_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    with silence_logging():
        logging.getLogger("some.library").warning("kernels are missing")
        warnings.warn("this will change", FutureWarning, stacklevel=1)
        logging.getLogger("some.library").error("this is broken")
    logging.getLogger("some.library").warning("heard")

    assert [record.getMessage() for record in caplog.records] == ["this is broken", "heard"]


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(ImportError):
        import_silently("no_such_library")
