"""The files of an adapter's folder: PEFT's two, and those that deltarank adds."""

from __future__ import annotations

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
METADATA_FILE = "deltarank.json"
MODEL_CARD_FILE = "README.md"
BUDGET_PICTURE_FILE = "budget.png"
