"""What a user is told while the factors are fitted."""

from __future__ import annotations

from collections.abc import Callable

from deltarank.results import figure


class TrainingNotes:
    """The sentences on what each look found, and on what the training did then.

    Args:
        steps: of the training, in all.
        note: called with each sentence.
    """

    def __init__(self, steps: int, note: Callable[[str], None]) -> None:
        self._steps, self._note = steps, note
        self._best = (0, float("inf"))
        self._is_resumed = False

    def look(self, step: int, kld: float) -> None:
        """After this step the student is so far from the finetune; after step 0, plain extraction is."""
        when = f"After step {step:,}" if step else "Plain extraction"
        self._note(f"{when}: {figure(kld)} nats per token from the finetune, on the documents that choose.")
        if kld < self._best[1]:
            self._best = step, kld
        elif step < self._steps:
            self._note(f"That is no nearer than before: back to {self._where}, with smaller steps.")
        else:
            self._note(f"That is no nearer than before: {self._where} is kept.")

    def resume(self, made: int) -> None:
        """An interrupted training goes on. Of its looks nothing is known here."""
        self._is_resumed = True
        self._note(f"The training goes on after step {made:,} of {self._steps:,}.")

    @property
    def _where(self) -> str:
        if self._is_resumed:
            return "the best step"
        return f"step {self._best[0]:,}" if self._best[0] else "plain extraction"
