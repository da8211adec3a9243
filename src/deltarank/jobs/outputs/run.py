"""One pass of `outputs`: the finetune answers and predicts, then each candidate. Finished work is stored at once."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from deltarank.divergence import Document
from deltarank.jobs.outputs.answers import AnswerRecord, Answers
from deltarank.jobs.outputs.attribution import Attribution
from deltarank.jobs.outputs.candidates import Candidate, CandidateSet
from deltarank.jobs.outputs.loaded_model import LoadedModel, ModelLoader
from deltarank.jobs.outputs.low_rank import LowRankDeltas, MatrixDecomposer, MatrixDecomposition
from deltarank.jobs.outputs.partial_folder import PartialFolder
from deltarank.jobs.outputs.plan import OutputsPlan
from deltarank.jobs.outputs.scoring import OnTokens, Scorer, TextSet
from deltarank.jobs.outputs.summary import Measurements, summarise
from deltarank.results import (
    FINETUNE,
    FINETUNE_AGAIN,
    AttributionResult,
    CandidateKind,
    Outputs,
    headline_rank,
    read_records,
    to_plain,
)
from deltarank.runtime import ProgressListener, Record, RunFolder, TimeEstimate, matrix_pass, planned_seconds

OWN_ANSWERS = "its own answers"
"""The name of the text that is the finetune's own answers."""


@dataclass
class OutputsRun:
    """One pass over a plan.

    folder           open; it takes the records of finished work, and the files of `PartialFolder`
    records          of an earlier process
    fetch            how other checkpoints are fetched from the Hub
    """

    plan: OutputsPlan
    folder: RunFolder
    records: Sequence[Record]
    fetch: str
    progress: ProgressListener
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def outputs(self) -> Outputs:
        """Measures everything, except for what the records say is finished."""
        self._estimate = TimeEstimate(self.progress, self.plan.seconds)
        for note in self.plan.notes:
            self._note(note)
        answers = self._resume_answers()
        deltas = self._decompose()
        with CandidateSet(self.plan.models, deltas, self.plan.options, fetch=self.fetch) as candidate_set:
            candidates = candidate_set.all()
            texts, scorer = self._run_finetune(answers)
            for number, candidate in enumerate(candidates):
                self._run_candidate(number, candidate, scorer, answers)
            attribution = self._attribute(deltas, scorer, texts, first_number=len(candidates))
        return summarise(
            Measurements(
                reference=self.plan.models.finetune.reference.short_name,
                options=self.plan.options,
                candidates=candidates,
                texts=texts,
                scorer=scorer,
                answers=answers,
                tokenizer=self.plan.inputs.tokenizer,
                attribution=attribution,
                headline_rank=self._headline_rank,
                notes=tuple(self.notes),
                seconds=self.seconds,
            )
        )

    def _decompose(self) -> LowRankDeltas:
        """Decomposes the matrices whose factors an earlier process has not stored."""
        options, plan = self.plan.options, self.plan.decomposition
        pairs = {step.pair.name: step.pair for step in plan.steps}
        numbers = {name: number for number, name in enumerate(pairs)}

        def factor_file(name: str) -> Path:
            return self._files.factors(numbers[name])

        decompositions = {
            each.matrix: each
            for each in read_records(MatrixDecomposition, self.records, "matrix")
            if each.matrix in pairs and (not each.has_factors or factor_file(each.matrix).is_file())
        }
        finished = math.fsum(planned_seconds(step) for step in plan.steps if step.pair.name in decompositions)
        if decompositions:
            self._estimate.add("decomposition", finished, resumed=True)
        results = matrix_pass(
            [[step] for step in plan.steps if step.pair.name not in decompositions],
            lambda: MatrixDecomposer(options.solver_options, max(options.ranks), factor_file),
            seconds=planned_seconds,
            workers=1,
            progress=self.progress,
            estimate=self._estimate,
        )
        with closing(results):
            for result in results:
                result.check()
                decompositions[result.matrix] = result
                self.folder.append(to_plain(result))
        return LowRankDeltas(pairs, decompositions, factor_file, options.torch_device)

    def _run_finetune(self, answers: Answers) -> tuple[list[TextSet], Scorer]:
        """The finetune answers the prompts twice and predicts all texts."""
        models, seed = self.plan.models, self.plan.options.seed
        finetune = Candidate(FINETUNE, CandidateKind.CONTROL, models.finetune_skeleton, models.finetune_weights())
        with LoadedModel(finetune, self._loader) as model:
            self._answer(answers, FINETUNE, model, seed)
            self._answer(answers, FINETUNE_AGAIN, model, seed + 1)
            texts, scorer = self._collect_texts(answers)
            self.progress.began(FINETUNE)
            scorer.store_reference(model, self._on_tokens(FINETUNE))
        return texts, scorer

    def _run_candidate(self, number: int, candidate: Candidate, scorer: Scorer, answers: Answers) -> None:
        started = time.perf_counter()
        self.progress.began(candidate.name)
        with LoadedModel(candidate, self._loader) as model:
            if candidate.kind is not CandidateKind.CONTROL:
                self._answer(answers, candidate.name, model, self.plan.options.seed + 1)
            scorer.score(number, model, self._on_tokens(candidate.name))
            unread = sum(not scorer.can_read(model, i) for i in range(len(scorer.documents)))
        if unread:
            self._note(
                f"{candidate.name}: {unread:,} of {len(scorer.documents):,} documents are left out, because they have "
                "tokens that are not in its vocabulary"
            )
        self.seconds[candidate.name] = time.perf_counter() - started

    def _attribute(
        self, deltas: LowRankDeltas, scorer: Scorer, texts: Sequence[TextSet], *, first_number: int
    ) -> tuple[AttributionResult, ...]:
        unit = self.plan.options.attribute
        if unit is None:
            return ()
        attribution = Attribution(
            models=self.plan.models,
            deltas=deltas,
            scorer=scorer,
            loader=self._loader,
            unit=unit,
            rank=self._headline_rank,
            first_number=first_number,
            on_tokens=self._on_tokens,
        )
        return (attribution.measure(texts),)

    def _resume_answers(self) -> Answers:
        options = self.plan.options
        answers = Answers(
            self.plan.inputs.prompts,
            self.plan.inputs.tokenizer,
            options.samples,
            options.max_tokens,
            self.plan.models.context,
            options.batch,
            self.folder.append,
        )
        for record in read_records(AnswerRecord, self.records, "answers"):
            answers.add(record)
        return answers

    def _answer(self, answers: Answers, name: str, model: LoadedModel, seed: int) -> None:
        if answers.prompts:
            self.progress.began(f"{name}: answers")
            seconds = self.plan.seconds_per_prompt
            answers.generate(name, model, seed, lambda prompts: self._estimate.add(name, prompts * seconds))

    def _collect_texts(self, answers: Answers) -> tuple[list[TextSet], Scorer]:
        """The texts that were given, and the finetune's answers to the prompts."""
        own = [answer.to_document() for answer in answers.of_model(FINETUNE)]
        given = [(name, documents, False) for name, documents in self.plan.inputs.texts]
        texts: list[TextSet] = []
        documents: list[Document] = []
        for name, some, is_own in (*given, (OWN_ANSWERS, [each for each in own if each.scored_tokens], True)):
            if some:
                texts.append(TextSet(name, tuple(range(len(documents), len(documents) + len(some))), is_own))
                documents += some
        size, tokens = self.plan.options.batch, self.plan.tokens_at_once
        return texts, Scorer(documents, self._files, size=size, tokens=tokens)

    @property
    def _files(self) -> PartialFolder:
        return PartialFolder(self.folder.folder)

    @property
    def _loader(self) -> ModelLoader:
        options = self.plan.options
        return ModelLoader(options.torch_device, options.torch_dtype, self.plan.streams)

    @cached_property
    def _headline_rank(self) -> int:
        largest_side = max((min(pair.shape) for pair in self.plan.models.pairing.pairs), default=0)
        return headline_rank(self.plan.options.ranks, largest_side)

    def _note(self, sentence: str) -> None:
        self.notes.append(sentence)
        self.progress.warned(sentence)

    def _on_tokens(self, name: str) -> OnTokens:
        seconds = self.plan.seconds_per_token
        return lambda tokens: self._estimate.add(name, tokens * seconds)
