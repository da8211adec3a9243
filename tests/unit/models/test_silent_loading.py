"""Loading a model writes nothing to a user's terminal."""

import subprocess
import sys

import pytest

LOADS_A_MODEL = """
import deltarank.models, torch, transformers
from transformers import AutoModelForCausalLM, LlamaConfig
sizes = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
config = LlamaConfig(**sizes)
weights = AutoModelForCausalLM.from_config(config).state_dict()
transformers.utils.logging.disable_progress_bar()
AutoModelForCausalLM.from_config(config).from_pretrained(None, config=config, state_dict=weights)
deltarank.models.get_yardstick("nf4")
"""


@pytest.mark.slow
def test_a_model_is_loaded_without_any_output() -> None:
    done = subprocess.run([sys.executable, "-c", LOADS_A_MODEL], capture_output=True, text=True, timeout=300)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
