"""Training of the demo's models: a base, a merged LoRA, a full finetune, and a merge of two full finetunes."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from deltarank.demo import model as _model
from deltarank.demo.at_once import run_at_once
from deltarank.demo.recipe import Course, Recipe
from deltarank.demo.steps import OnStep, both, watched_steps
from deltarank.demo.text import TrainingText, read_texts
from deltarank.demo.train import loss_on, train
from deltarank.demo.trained_lab import Lab, Training
from deltarank.results import duration, figure, size


def build(folder: Path, recipe: Recipe, *, seed: int, say: Callable[[str], None], progress: bool) -> Lab:
    """Train all checkpoints into `folder`, about 13 MB for each pair."""
    started = time.perf_counter()
    with _quiet(), _reproducible():
        builder = _LabBuilder(folder, recipe, seed, say, progress)
        builder.read_texts()
        builder.make_base()
        builder.make_finetunes()
        builder.make_merge()
    return Lab(
        folder=folder,
        seed=seed,
        parameters=builder.parameters,
        seconds=time.perf_counter() - started,
        trainings=tuple(builder.trainings),
        losses=builder.losses,
    )


@dataclass
class _LabBuilder:
    """The state that the training steps share."""

    folder: Path
    recipe: Recipe
    seed: int
    say: Callable[[str], None]
    progress: bool
    parameters: int = 0
    train_tokens: dict[str, Tensor] = field(default_factory=dict)
    unseen_tokens: dict[str, Tensor] = field(default_factory=dict)
    trainings: list[Training] = field(default_factory=list)
    losses: dict[str, dict[str, float]] = field(default_factory=dict)

    def read_texts(self) -> None:
        texts = read_texts(self.recipe.text_limit)
        (self.folder / "texts").mkdir()
        for text in (texts.code, texts.manual, texts.docstrings):
            self.train_tokens[text.name] = _model.encode(text.train)
            self.unseen_tokens[text.name] = _model.encode(text.held_out)
            self._write_unseen(text)
        sizes = {name: size(len(tokens)) for name, tokens in self.train_tokens.items()}
        self.say(
            f"Training text, from Python's standard library: {sizes['code']} of code, {sizes['manual']} of help "
            f"pages, {sizes['docstrings']} of docstrings."
        )

    def _write_unseen(self, text: TrainingText) -> None:
        path = self.folder / "texts" / f"{text.name}.txt"
        path.write_text("\n\n".join(text.held_out), encoding="utf-8", errors="replace", newline="\n")

    def make_base(self) -> None:
        torch.manual_seed(self._seed_for("weights"))
        model = _model.new_model(self.recipe)
        self.parameters = _model.parameters(model)
        self.say(f"1 of 4: training the base, a Llama of {self.parameters / 1e6:.1f} M parameters, on code.")
        before = self._loss_of(model, "code")
        with watched_steps("base", self.recipe.base.steps, self.say, progress=self.progress) as on_step:
            seconds = self._train(model, "code", self.recipe.base, on_step)
        self._keep(model, "base", "code", self.recipe.base, seconds, before)

    def make_finetunes(self) -> None:
        """All at the same time, in threads: a step of so small a model gains little from a second core."""
        rank, recipe = self.recipe.lora_rank, self.recipe
        self.say(f"2 of 4: training a LoRA of rank {rank} on help pages, to be merged into the base.")
        self.say("3 of 4: training a full finetune of the base on the same pages in the same order.")
        self.say("4 of 4: training a second full finetune on docstrings, for the merge.")
        lora, full, other = (_model.load(self.folder / "base") for _ in range(3))
        torch.manual_seed(self._seed_for("adapter"))
        adapted = _model.with_lora(lora, recipe)
        with watched_steps("full", recipe.full.steps, self.say, progress=self.progress) as on_step:
            seconds = run_at_once(
                lambda stop: self._train(adapted, "manual", recipe.lora, stop),
                lambda stop: self._train(full, "manual", recipe.full, both(stop, on_step)),
                lambda stop: self._train(other, "docstrings", recipe.other, stop),
            )
        _model.save_adapter(adapted, self.folder / "adapter")
        self._keep(_model.merged(adapted), "lora", "manual", recipe.lora, seconds[0])
        self._keep(full, "full", "manual", recipe.full, seconds[1])
        self._keep(other, "other", "docstrings", recipe.other, seconds[2])

    def make_merge(self) -> None:
        self.say("Merging: averaging the weights of the two full finetunes.")
        model = _model.average(_model.load(self.folder / "full"), _model.load(self.folder / "other"))
        self._keep(model, "merge", "manual", Course(steps=0, peak_rate=0.0), 0.0)

    def _train(self, model: nn.Module, text: str, course: Course, on_step: OnStep) -> float:
        # The seed is the text's, not the finetune's: models trained on the same text see it in the same order.
        seed, tokens = self._seed_for(text), self.train_tokens[text]
        return train(model, tokens, course, length=self.recipe.length, seed=seed, on_step=on_step)

    def _keep(
        self,
        model: _model.Llama,
        name: str,
        text: str,
        course: Course,
        seconds: float,
        before: float | None = None,
    ) -> None:
        """Save a checkpoint, and compute the losses of what was stored, not of what was in memory."""
        _model.save(model, self.folder / name, self.recipe)
        self.losses[name] = self._losses_of(_model.load(self.folder / name))
        was, now = self.losses["base"][text] if before is None else before, self.losses[name][text]
        tokens = course.steps * course.batch * self.recipe.length
        self.trainings.append(Training(name, text, course.steps, tokens, seconds, was, now))
        self.say(f"  {name}: loss on held-out {text} from {figure(was)} to {figure(now)} nats per byte{_in(seconds)}.")

    def _losses_of(self, model: nn.Module) -> dict[str, float]:
        return {text: self._loss_of(model, text) for text in self.unseen_tokens}

    def _loss_of(self, model: nn.Module, text: str) -> float:
        tokens, recipe = self.unseen_tokens[text], self.recipe
        return loss_on(model, tokens, length=recipe.length, windows=recipe.loss_windows)

    def _seed_for(self, purpose: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{purpose}".encode()).digest()[:6])


def _in(seconds: float) -> str:
    return f", in {duration(seconds)}" if seconds >= 1 else ""


@contextmanager
def _reproducible() -> Iterator[None]:
    """Deterministic kernels; the state of the caller's random generators is restored."""
    strict = torch.are_deterministic_algorithms_enabled()
    deterministic: Any = torch.utils.deterministic  # untyped
    filled = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = False  # a twentieth of the time, against reads that torch does not make
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.use_deterministic_algorithms(strict)
        deterministic.fill_uninitialized_memory = filled


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars of transformers, and without FutureWarnings from transformers and PEFT."""
    logging: Any = transformers_logging  # untyped
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
            yield
    finally:
        if bars:
            logging.enable_progress_bar()
