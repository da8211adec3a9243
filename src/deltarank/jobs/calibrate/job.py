"""A calibration from two open checkpoints: plain extraction, distillation, scoring, and the adapter that results."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from deltarank.adapters import METADATA_FILE, MODEL_CARD_FILE
from deltarank.checkpoints import Checkpoint, pair_checkpoints
from deltarank.divergence import Tokenizer
from deltarank.jobs.calibrate.calibration_folder import CalibrationFolder
from deltarank.jobs.calibrate.calibration_texts import CalibrationTexts, texts_identity
from deltarank.jobs.calibrate.checks import check_loads, read_runnable_skeleton
from deltarank.jobs.calibrate.distill import Distillation, Fitted, Lesson
from deltarank.jobs.calibrate.documents import Split, other_records, write_records
from deltarank.jobs.calibrate.evaluate import Candidates, Evaluation, carries_all_matrices, larger_ranks
from deltarank.jobs.calibrate.options import CalibrateOptions
from deltarank.jobs.calibrate.own_answers import OwnAnswers
from deltarank.jobs.calibrate.placement import has_fast_bfloat16, load_placed
from deltarank.jobs.calibrate.plan import CalibrationPlan
from deltarank.jobs.calibrate.student import Student, add_tokens
from deltarank.jobs.calibrate.teacher import check_causal, store_predictions
from deltarank.jobs.calibrate.texts import Record
from deltarank.jobs.calibrate.training_notes import TrainingNotes
from deltarank.jobs.calibrate.weights_kept import with_weights_kept
from deltarank.jobs.extract import ExtractedAdapter, ExtractJob, render_model_card
from deltarank.models import (
    AnyModel,
    ModelSkeleton,
    PredictionStore,
    Predictor,
    base_tokenizer_notes,
    load_tokenizer_of,
    translate_out_of_memory,
)
from deltarank.results import Calibration, CalibrationMethod, count, frozen_sentence
from deltarank.runtime import PartOfJob, ProgressListener, TimeEstimate, available_memory


@dataclass(frozen=True)
class CalibrateJob:
    """Two open checkpoints and the options of the calibration."""

    base: Checkpoint
    finetune: Checkpoint
    options: CalibrateOptions

    @cached_property
    def extraction(self) -> ExtractJob:
        return ExtractJob(self.base, self.finetune, self.options.plain)

    @cached_property
    def base_skeleton(self) -> ModelSkeleton:
        return read_runnable_skeleton(self.base)

    @cached_property
    def finetune_skeleton(self) -> ModelSkeleton:
        return read_runnable_skeleton(self.finetune)

    @cached_property
    def plan(self) -> CalibrationPlan:
        models = (self.base_skeleton, self.base), (self.finetune_skeleton, self.finetune)
        options = replace(self.options, calibrate=self.texts.names)
        memory = available_memory(self._device)
        return CalibrationPlan.of_models(options, self.extraction.plan, models, memory, self.texts.notes)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What must be equal for one process to resume the work of another.

        Raises:
            UsageError: (slug "text-not-found") there is no such text.
        """
        files, kinds = texts_identity(self.options)  # of files, the contents count and not the names
        settings = {**self.options.to_plain(), "calibrate": kinds}
        return {**self.extraction.identity, "given": {"texts": files}, "settings": settings}

    @cached_property
    def texts(self) -> CalibrationTexts:
        return CalibrationTexts(self.options, self.base_skeleton, self.finetune_skeleton, self._tokenizer)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer_of(self.finetune_skeleton)

    @property
    def _device(self) -> torch.device:
        return self.options.solver_options.torch_device

    @property
    def _rank(self) -> int:
        assert self.options.fixed_rank is not None, "CalibrateOptions refuses others"
        return self.options.fixed_rank

    def check_output(self, output: Path, *, force: bool) -> None:
        """Raises OutputError if `run` could not write there. Writes nothing."""
        with CalibrationFolder(output, self.identity) as folder:
            if force or not folder.is_finished:
                folder.check(force=force, needed_bytes=self.plan.disk_bytes)

    def run(self, output: Path, *, force: bool, progress: ProgressListener) -> ExtractedAdapter:
        """Writes the adapter, or resumes; see `deltarank.extract_calibrated`."""
        started = time.perf_counter()
        self.plan.check_memory()
        with CalibrationFolder(output, self.identity) as folder:
            if folder.is_finished and not force:
                folder.remove_leftovers()
                progress.noted(f"{output} already contains this adapter: nothing to do. --force makes it again.")
                return ExtractedAdapter.load(output)
            self.texts.check()
            folder.open(force=force, needed_bytes=self.plan.disk_bytes)
            progress.writing(output)
            for note in base_tokenizer_notes(self.base_skeleton, self.finetune_skeleton, self._tokenizer):
                progress.warned(note)
            split = self._split(folder, progress)
            plain = self._extract(folder, progress)
            fitted = self._distil(folder, split, progress)
            folder.write_adapter(is_trained=fitted.steps > 0)
            calibration = self._score(folder, split, plain, fitted, progress)
            adapter = self._describe(plain, calibration, folder, progress, started)
            folder.publish()
        return adapter

    def _extract(self, folder: CalibrationFolder, progress: ProgressListener) -> ExtractedAdapter:
        """The plain adapter."""
        if folder.is_extracted:
            plain = ExtractedAdapter.load(folder.plain)
        else:
            seconds = self.plan.extraction.seconds
            progress.noted("Extracting the plain adapter, which the fit starts from.")
            part = PartOfJob(progress, seconds=seconds, after=self.plan.seconds - seconds)
            plain = self.extraction.run(folder.plain, progress=part)
        check_loads(plain)
        return plain

    def _split(self, folder: CalibrationFolder, progress: ProgressListener) -> Split:
        """The documents, of which those that are only scored and those of the other text are stored for `outputs`."""
        for note in self.texts.notes:
            progress.noted(note)
        answers = self.texts.answers
        split = self.texts.split(self._answer(answers, folder, progress) if answers else [])
        with folder.writing():
            write_records(folder.held_out, split.score)
            write_records(folder.other_text, other_records())
        return split

    def _answer(self, answers: OwnAnswers, folder: CalibrationFolder, progress: ProgressListener) -> list[Record]:
        progress.noted("The finetune answers the built-in prompts.")
        with folder.writing():
            answers.write(
                folder.own_answers,
                lambda: self._load_finetune(self._answering_dtype)[0],
                lambda number: progress.noted(f"{count(number, 'prompt is', 'prompts are')} answered."),
            )
        return answers.read(folder.own_answers)

    def _distil(self, folder: CalibrationFolder, split: Split, progress: ProgressListener) -> Fitted:
        lesson = self._lesson(folder, split, progress)
        with folder.writing(), translate_out_of_memory(self._device):
            model, head = load_placed(self.base_skeleton, self.base, self.plan.placement, self._device)
            add_tokens(model, self.plan.extraction, self.finetune_skeleton.vocabulary)
            student = Student(model, folder.plain, self._device, head, self.plan.placement)
            if student.frozen:
                progress.warned(frozen_sentence(len(student.frozen)))
            training = Distillation(
                student, lesson, steps=self.options.steps, seed=self.options.seed, state_file=folder.training
            )
            step, training_seconds = self.plan.step_seconds, self.plan.step_seconds * self.options.steps
            before, after = self.plan.extraction.seconds, self.plan.scoring_seconds
            part = PartOfJob(progress, before=before, seconds=training_seconds, after=after)
            estimate = TimeEstimate(part, training_seconds)
            notes = TrainingNotes(self.options.steps, progress.noted)

            def resume(made: int) -> None:
                notes.resume(made)
                estimate.add(f"step {made:,}", made * step, resumed=True)

            best, made = training.run(
                lambda number: estimate.add(f"step {number:,} of {self.options.steps:,}", step),
                notes.look,
                resume,
            )
            student.save(folder.trained)
        if training.diverged:
            progress.warned(
                f"The training ended after step {made:,}, because its loss or gradient was not finite. The best step "
                "before it is kept."
            )
        elif made < self.options.steps:
            progress.noted(
                "There is nothing to fit: the plain adapter is exact, up to rounding, or all of its factors are zero."
            )
        return Fitted(best.step, made, len(student.frozen))

    def _lesson(self, folder: CalibrationFolder, split: Split, progress: ProgressListener) -> Lesson:
        """The documents that fit and choose, with the finetune's predictions on them."""
        fit, choose = self.texts.encode(split.fit), self.texts.encode(split.choose)
        documents = [*fit, *choose]
        progress.noted(self.texts.read_by_finetune(len(split.fit) + len(split.choose), len(documents)))
        store = PredictionStore(folder.teacher)
        _, predictor = self._load_finetune()
        with folder.writing():
            windows = store_predictions(predictor, documents, store)
        return Lesson(windows, store, range(len(fit)), range(len(fit), len(documents)))

    @property
    def _answering_dtype(self) -> torch.dtype:
        """Answers are texts to read, so rounding costs nothing: most servers round to bfloat16, too."""
        return torch.bfloat16 if has_fast_bfloat16(self._device) else torch.float32

    def _load_finetune(self, dtype: torch.dtype = torch.float32) -> tuple[AnyModel, Predictor]:
        """Raises CheckpointError (slug "not-a-language-model") if it does not predict the next token."""
        model, head = load_placed(self.finetune_skeleton, self.finetune, self.plan.placement, self._device, dtype)
        predictor = Predictor(model, self._device, head)
        check_causal(predictor, self.finetune.reference.ref)
        return model, predictor

    def _score(
        self,
        folder: CalibrationFolder,
        split: Split,
        plain: ExtractedAdapter,
        fitted: Fitted,
        progress: ProgressListener,
    ) -> Calibration:
        largest = max(min(target.pair.shape) for target in self.plan.extraction.layout.targets)
        candidates = Candidates(
            pair=(self.base, self.finetune),
            adapters=folder.adapters,
            rank=self._rank,
            larger_ranks=larger_ranks(self._rank, self.options.rules.candidate_ranks, largest),
            texts=(folder.held_out, folder.other_text),
            has_all_matrices=carries_all_matrices(
                self.plan.extraction, plain, pair_checkpoints(self.base, self.finetune)
            ),
            device=self.options.device,
            seed=self.options.seed,
        )
        before = self.plan.seconds - self.plan.scoring_seconds
        evaluation = Evaluation.measure(candidates, folder.scores, progress, before=before)
        return Calibration(
            texts=self.texts.names,
            tokens=sum(len(document.ids) for document in self.texts.encode(split.fit)),
            method=CalibrationMethod.KL_DISTILLATION if fitted.steps else CalibrationMethod.PLAIN,
            steps=fitted.steps,
            steps_made=fitted.steps_made,
            placement=self.plan.placement,
            frozen=fitted.frozen,
            ridge=None,
            seed=self.options.seed,
            fitted=len(split.fit),
            chosen=len(split.choose),
            held_out=evaluation.held_out,
            other_text=evaluation.other_text,
            rank_equivalent=evaluation.rank_equivalent if fitted.steps else self._rank,
        )

    def _describe(
        self,
        plain: ExtractedAdapter,
        calibration: Calibration,
        folder: CalibrationFolder,
        progress: ProgressListener,
        started: float,
    ) -> ExtractedAdapter:
        """The metadata and the model card of the adapter."""
        adapter = replace(
            plain,
            folder=folder.output,
            calibration=calibration,
            settings={
                **plain.settings,
                **self.options.calibration,
                "seconds": round(time.perf_counter() - started, 1),
            },
            identity=folder.identity_hash,
        )
        if calibration.steps:
            pair = self.base, self.finetune
            adapter = with_weights_kept(adapter, folder.calibrated, pair, self.options.device, progress)
        for sentence in calibration.warnings:
            progress.warned(sentence)
        with folder.writing():
            (folder.calibrated / METADATA_FILE).write_text(adapter.to_json(), encoding="utf-8")
            (folder.calibrated / MODEL_CARD_FILE).write_text(render_model_card(adapter), encoding="utf-8")
        return adapter
