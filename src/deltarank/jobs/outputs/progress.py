"""How far a job is: each finished piece of work counts as the share that it is of its planned time."""

from __future__ import annotations

from deltarank.jobs.outputs.callbacks import OnFinished
from deltarank.jobs.outputs.plan import OutputsPlan
from deltarank.runtime import ProgressListener, TimeEstimate


class OutputsProgress:
    """Reports the progress of a job to a listener. The shares of all its work add up to 1."""

    def __init__(self, listener: ProgressListener, plan: OutputsPlan) -> None:
        self.estimate = TimeEstimate(listener, plan.seconds)
        self._plan = plan

    def loaded(self, name: str, /, *, resumed: bool) -> None:
        """See `OnLoaded`."""
        self.estimate.add(name, self._plan.time.loading, resumed=resumed)

    def answers(self, name: str, prompts: int) -> OnFinished:
        """For a model that answers so many prompts."""
        return self._shares(name, prompts, self._plan.time.answering)

    def texts(self, name: str, tokens: int) -> OnFinished:
        """For a model that reads all texts, which have so many tokens: the plan knew only a bound of the answers'."""
        return self._shares(name, tokens, self._plan.time.reading)

    def control(self, name: str, tokens: int) -> OnFinished:
        """For a control, which reads a part of each text, of so many tokens in all."""
        return self._shares(name, tokens, self._plan.seconds_per_control)

    def part(self, name: str, tokens: int) -> OnFinished:
        """For the finetune with one part truncated, which reads a text of so many tokens."""
        return self._shares(name, tokens, self._plan.seconds_per_part)

    def summarised(self, name: str) -> None:
        self.estimate.add(name, self._plan.summary_seconds)

    def _shares(self, name: str, whole: int, seconds: float) -> OnFinished:
        def report(number: int, /, *, resumed: bool) -> None:
            self.estimate.add(name, seconds * number / whole, resumed=resumed)

        return report
