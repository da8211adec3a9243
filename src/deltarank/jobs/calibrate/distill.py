"""KL distillation: A and B move down the gradient of the KL divergence from the finetune (Hinton et al. 2015).

The loss of a token is KL(P || Q) between the finetune's prediction P and the student's Q, over the whole vocabulary,
after the same tokens. The finetune's predictions are computed once. Muon (Jordan et al. 2024) takes the steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltarank.architectures import first_line
from deltarank.errors import JobError
from deltarank.jobs.calibrate.kl import common_tokens, expected_weights, kl_divergence, kl_gradient
from deltarank.jobs.calibrate.muon import Muon
from deltarank.jobs.calibrate.schedule import SLOWER, batches_of_steps, is_time_to_look, rate, step_size
from deltarank.jobs.calibrate.student import Factors, Student
from deltarank.models import Head, PredictionStore, Window, batch_windows
from deltarank.system import write_atomically

FAR_ENOUGH = 0.005
"""Nats per token. From there on, gradients are computed in bfloat16: its rounding adds about 2e-4 nats."""

SAVE_SECONDS = 30.0
"""The state is stored after each look, and when this time has passed since."""

BASE_DOCUMENTS = 10
"""Of those that choose: the base is scored on these, for the size of the first step."""

OnStep = Callable[[int], None]
"""Called with the number of each step that was made."""

OnResume = Callable[[int], None]
"""Called with the number of steps that an interrupted training had made, if there was one."""

OnLook = Callable[[int, float, int], None]
"""Called after each look with the number of the step, the KLD on the documents that choose, and the best step."""


@dataclass(frozen=True)
class Lesson:
    """Documents and the finetune's predictions on them.

    fit, choose  indices into `windows`
    """

    windows: Sequence[Window]
    teacher: PredictionStore
    fit: Sequence[int]
    choose: Sequence[int]


@dataclass(frozen=True)
class Fitted:
    """What a training ended with.

    steps       of the adapter that is kept; 0: the plain one
    steps_made  in all
    frozen      factors that were not trained
    """

    steps: int
    steps_made: int
    frozen: int


@dataclass(frozen=True)
class KldSum:
    """A sum of KL divergences in nats, over so many tokens."""

    nats: float
    tokens: int

    def __add__(self, other: KldSum) -> KldSum:
        return KldSum(self.nats + other.nats, self.tokens + other.tokens)

    @property
    def mean(self) -> float:
        return self.nats / self.tokens


@dataclass
class Best:
    """The best step so far: its KLD on the documents that choose, in nats per token."""

    step: int
    kld: float
    factors: Factors


class Distillation:
    """One training. It stores its state every SAVE_SECONDS, so that an interrupted one is resumed.

    Args:
        state_file: where.
    """

    def __init__(self, student: Student, lesson: Lesson, *, steps: int, seed: int, state_file: Path) -> None:
        self._student, self._lesson, self._steps, self._state_file = student, lesson, steps, state_file
        self._head = lesson.teacher.load_head()
        lengths = {i: len(lesson.windows[i].ids) for i in lesson.fit}
        self._batches = batches_of_steps(lengths, steps, seed)
        self._expected: dict[int, Tensor] = {}
        self._common_tokens: int | None = None
        self._made = 0
        self._saved = time.monotonic()
        self.diverged = False

    def run(self, on_step: OnStep, on_look: OnLook, on_resume: OnResume) -> tuple[Best, int]:
        """The best step, whose factors the student then has, and how many steps were made.

        It ends early, with `diverged`, where the loss or its gradient stops being finite.

        Raises:
            JobError: (slug "outputs-not-finite") the plain adapter's predictions are not.
        """
        plain, groups = self._start()
        self._best = Best(0, plain, self._student.factors())
        on_look(0, plain, 0)
        self._in_bfloat16 = plain >= FAR_ENOUGH and self._student.has_fast_bfloat16
        if groups:
            self._optimizer = Muon(groups)
            self._resume(on_resume)
            self._make_steps(on_step, on_look)
        self._student.set_factors(self._best.factors)
        return self._best, self._made

    def _start(self) -> tuple[float, list[dict[str, Any]]]:
        """The KLD of the plain adapter, and the groups that the optimiser moves."""
        few, others = (self._lesson.choose[part] for part in (slice(BASE_DOCUMENTS), slice(BASE_DOCUMENTS, None)))
        near = self._divergence(few)
        plain = (near + self._divergence(others)).mean
        if not math.isfinite(plain):
            raise _not_finite()
        with self._student.as_base():
            base = self._divergence(few)
        return plain, self._parameter_groups(step_size(near.mean, base.mean))

    def _make_steps(self, on_step: OnStep, on_look: OnLook) -> None:
        while self._made < self._steps and not self.diverged:
            if not self._step():
                self.diverged = True
                return
            if is_look := is_time_to_look(self._made, self._steps):
                kld = self._look()
                on_look(self._made, kld, self._best.step)
            if is_look or time.monotonic() - self._saved >= SAVE_SECONDS:
                self._save()
            on_step(self._made)

    def _parameter_groups(self, size: float) -> list[dict[str, Any]]:
        """Those that can be moved; none where every factor is zero, or where the start is exact."""
        parameters = list(self._student.parameters.values())
        rates = [size * float(each.detach().square().mean().sqrt()) for each in parameters]
        return [
            {"params": [each], "lr": rate, "first": rate} for each, rate in zip(parameters, rates, strict=True) if rate
        ]

    def _step(self) -> bool:
        """One step down the gradient. False, without a step, if it is not finite."""
        batch = self._batches[self._made]
        scored = sum(len(self._lesson.windows[i].rows) for i in batch)
        for part in self._parts(batch):
            self._accumulate(part, scored)
        gradients = (each.grad for each in self._student.parameters.values() if each.grad is not None)
        if not all(bool(each.isfinite().all()) for each in gradients):
            self._optimizer.zero_grad()
            return False
        self._made += 1
        for group in self._optimizer.param_groups:
            group["lr"] = group["first"] * rate(self._made, self._steps)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return True

    def _parts(self, batch: Sequence[int]) -> list[list[int]]:
        """What of the batch is read together."""
        parts = batch_windows([self._lesson.windows[i] for i in batch], size=None, tokens=self._student.tokens_at_once)
        return [[batch[i] for i in part] for part in parts]

    def _accumulate(self, part: Sequence[int], scored: int) -> None:
        """Adds the gradient of these documents to that of the step."""
        windows = [self._lesson.windows[i] for i in part]
        inputs, head = self._student.predict_with_gradient(windows, in_bfloat16=self._in_bfloat16)
        student = torch.cat(inputs)
        expected = torch.cat([self._expected_weights(i, student.detach(), head) for i in part])
        gradient = kl_gradient(expected, student.detach(), head, self._common(student, head))
        torch.autograd.backward(student, (gradient / scored).to(student.dtype))

    def _expected_weights(self, document: int, like: Tensor, head: Head) -> Tensor:
        """Kept, where it is not as long as the vocabulary."""
        if (known := self._expected.get(document)) is not None:
            return known.to(like.device)
        teacher, common = self._teacher([document], like), self._common(like, head)
        expected = expected_weights(teacher, self._teacher_head(like), head, common)
        if head.weight is not None:
            self._expected[document] = expected.cpu()
        return expected

    def _common(self, like: Tensor, head: Head) -> int:
        """How many tokens both vocabularies have. The same for all documents."""
        if self._common_tokens is None:
            teacher = self._teacher(self._lesson.fit[:1], like), self._teacher_head(like)
            self._common_tokens = common_tokens(*teacher, like, head)
        return self._common_tokens

    def _teacher(self, documents: Sequence[int], like: Tensor) -> Tensor:
        return torch.cat([self._lesson.teacher.load(i) for i in documents]).to(like.device)

    def _teacher_head(self, like: Tensor) -> Any:
        if self._head.weight is not None and self._head.weight.device != like.device:
            self._head = self._head.to(like.device)
        return self._head

    def _divergence(self, documents: Sequence[int]) -> KldSum:
        """That of the student as it is, over the scored tokens of these documents."""
        total = KldSum(0.0, 0)
        for part in self._parts(documents):
            inputs, head = self._student.predict([self._lesson.windows[i] for i in part])
            student = torch.cat(inputs)
            nats = kl_divergence(self._teacher(part, student), self._teacher_head(student), student, head)
            total += KldSum(nats, len(student))
        return total

    def _look(self) -> float:
        """The KLD on the documents that choose, of the factors as they are written.

        The best are kept. From others the training goes back to the best, and takes smaller steps from there.
        """
        with self._student.as_written():
            kld = self._divergence(self._lesson.choose).mean
        if kld < self._best.kld:
            self._best = Best(self._made, kld, self._student.factors())
        else:
            self._go_back()
        return kld

    def _go_back(self) -> None:
        self._student.set_factors(self._best.factors)
        self._optimizer.state.clear()
        for group in self._optimizer.param_groups:
            group["first"] *= SLOWER

    def _save(self) -> None:
        state = {
            "made": self._made,
            "factors": dict(self._student.factors()),
            "optimizer": self._optimizer.state_dict(),
            "best": {"step": self._best.step, "kld": self._best.kld, "factors": dict(self._best.factors)},
        }
        with write_atomically(self._state_file) as partial:
            try:
                torch.save(state, partial)
            except RuntimeError as error:  # how torch reports a full disk
                raise OSError(f"the state of the training cannot be stored ({first_line(error)})") from error
        self._saved = time.monotonic()

    def _resume(self, on_resume: OnResume) -> None:
        """Goes on after the last stored state, if there is one."""
        if not self._state_file.is_file():
            return
        state = torch.load(self._state_file, weights_only=True)
        self._made = state["made"]
        self._student.set_factors(state["factors"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._best = Best(**state["best"])
        on_resume(self._made)


def _not_finite() -> JobError:
    return JobError(
        "The predictions of the base with the plain adapter contain NaN or infinity: there is no start to improve.",
        cure="Run `deltarank compare` on the pair: it names tensors with such values.",
        slug="outputs-not-finite",
    )
