"""The small lab: a tiny base and three finetunes, trained here, on text that every Python has.

Importing this loads neither torch nor transformers; building a lab does.
"""

from __future__ import annotations

from deltarank.demo.findings import findings
from deltarank.demo.lab import build_lab
from deltarank.demo.outputs_findings import spoken
from deltarank.demo.reading import Reading, write_reading
from deltarank.demo.trained_lab import Lab, Training

__all__ = [
    "Lab",
    "Reading",
    "Training",
    "build_lab",
    "findings",
    "spoken",
    "write_reading",
]
