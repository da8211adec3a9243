"""This folder goes on the path of all tests, so that they share `hub.py`. What every test is run under."""

import os

from hypothesis import settings

# Two workers share two cores (see pyproject.toml): a second thread each would only wait for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same cases in every run, so that a failure is of the change at hand. HYPOTHESIS_PROFILE=random draws others.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
