"""The `blind` job: a fair test of whether people can tell two models apart, and its score."""

from deltarank.jobs.blind.api import make_blind_test, run_of_test, score_blind_test
from deltarank.jobs.blind.blind_test import BlindTest
from deltarank.results import BlindKey, BlindScore

__all__ = ["BlindKey", "BlindScore", "BlindTest", "make_blind_test", "run_of_test", "score_blind_test"]
