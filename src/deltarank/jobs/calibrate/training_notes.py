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

    def look(self, step: int, kld: float, best: int) -> None:
        """After this step the student is so far from the finetune, and it is nearest after the step `best`.

        Step 0 is plain extraction.
        """
        when = f"After step {step:,}" if step else "Plain extraction"
        self._note(f"{when}: {figure(kld)} nats per token from the finetune, on the documents that choose.")
        if best != step:
            where = f"step {best:,}" if best else "plain extraction"
            then = f"back to {where}, with smaller steps" if step < self._steps else f"{where} is kept"
            self._note(f"That is no nearer than before: {then}.")

    def resume(self, made: int) -> None:
        """An interrupted training goes on."""
        self._note(f"The training goes on after step {made:,} of {self._steps:,}.")
