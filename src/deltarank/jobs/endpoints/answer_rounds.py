"""How much text an identification asks for."""

ANSWER_TOKENS = 48
"""Of an answer, at most."""

ROUNDS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Answers after which the models are run again, and the evidence is looked at."""

MOST_TOKENS = ANSWER_TOKENS * ROUNDS[-1]
"""Of all answers of an endpoint together."""
