"""The demo: a tiny base and three finetunes, trained here on text that every Python has.

Importing this imports neither torch nor transformers; building a lab does.
"""

from deltarank.demo.lab import build_lab
from deltarank.demo.reading import Reading, write_reading
from deltarank.demo.recipe import Recipe
from deltarank.demo.trained_lab import Lab, Training

__all__ = ["Lab", "Reading", "Recipe", "Training", "build_lab", "write_reading"]
