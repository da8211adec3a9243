"""One pass of `outputs`: the finetune answers and predicts, then each candidate. Finished work is stored at once."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from deltarank.jobs.outputs.answers import AnswerRecord, Answers, candidate_seed, finetune_records, with_ids
from deltarank.jobs.outputs.attribution import Attribution
from deltarank.jobs.outputs.callbacks import OnFinished
from deltarank.jobs.outputs.candidate_names import answers_prompts
from deltarank.jobs.outputs.candidates import Candidate, CandidateSet
from deltarank.jobs.outputs.loaded_model import LoadedModel, ModelLoader
from deltarank.jobs.outputs.low_rank import (
    FactorFile,
    LowRankDeltas,
    MatrixDecomposition,
    decompose,
    lora_matrices,
)
from deltarank.jobs.outputs.partial_folder import PartialFolder
from deltarank.jobs.outputs.plan import OutputsPlan
from deltarank.jobs.outputs.progress import OutputsProgress
from deltarank.jobs.outputs.scoring import Scorer, TextSet
from deltarank.jobs.outputs.summary import Measurements, summarise
from deltarank.results import (
    FINETUNE,
    FINETUNE_AGAIN,
    AttributionResult,
    CandidateKind,
    Outputs,
    read_records,
    to_plain,
)
from deltarank.runtime import ProgressListener, Record, RunFolder, planned_seconds

OWN_ANSWERS = "its own answers"
"""The name of the text that is the finetune's own answers."""


SUMMARY = "the summary"
"""The name of the last stage: intervals, two-sample tests, sentences."""


@dataclass
class OutputsRun:
    """One pass over a plan.

    run_folder       open; it takes the records of finished work
    files            in the same folder
    records          of an earlier process
    fetch            how other checkpoints are fetched from the Hub
    """

    plan: OutputsPlan
    run_folder: RunFolder
    files: PartialFolder
    records: Sequence[Record]
    fetch: str
    listener: ProgressListener
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._progress = OutputsProgress(self.listener, self.plan)

    def outputs(self) -> Outputs:
        """Measures everything, except for what the records say is finished."""
        for note in self.plan.notes:
            self._note(note)
        answers = self._resume_answers()
        deltas = self._decompose()
        with self._candidate_set(deltas) as candidate_set:
            candidates = candidate_set.of_names(self.plan.candidates)
            with self._finetune_model() as model:
                if self.plan.earlier is None:
                    self._answer_twice(model, answers)
                texts = self._texts(answers)
                scorer = self._scorer(texts)
                self._store_reference(model, scorer)
            for number, candidate in enumerate(candidates):
                self._run_candidate(number, candidate, scorer, texts, answers)
            attribution = self._attribute(deltas, scorer, texts, candidates)
        self.listener.stage(SUMMARY)
        outputs = summarise(
            Measurements(
                reference=self.plan.models.finetune.reference.short_name,
                options=self.plan.options,
                candidates=candidates,
                texts=texts,
                scorer=scorer,
                answers=answers,
                tokenizer=self.plan.inputs.tokenizer,
                attribution=attribution,
                headline_rank=self.plan.headline_rank,
                notes=tuple(self.notes),
                seconds=self.seconds,
                earlier=self.plan.earlier,
            )
        )
        self._progress.summarised(SUMMARY)
        return outputs

    def _decompose(self) -> LowRankDeltas:
        """Decomposes the matrices whose factors an earlier process has not stored."""
        steps, ranks = self.plan.decomposition.steps, self.plan.decomposed_ranks
        options = self.plan.decomposition.options
        pairs = {pair.name: pair for pair in lora_matrices(self.plan.models.pairing.pairs)}
        numbers = {name: number for number, name in enumerate(pairs)}

        def factor_file(name: str) -> Path:
            return self.files.factors(numbers[name])

        decompositions = self._resume_decompositions(factor_file)
        left = [step for step in steps if step.pair.name not in decompositions]
        estimate = self._progress.estimate
        with closing(
            decompose(left, options, max(ranks, default=1), factor_file, progress=self.listener, estimate=estimate)
        ) as results:
            for result in results:
                decompositions[result.matrix] = result
                self.run_folder.append(to_plain(result))
        return LowRankDeltas(pairs, decompositions, factor_file, options.torch_device)

    def _resume_decompositions(self, factor_file: FactorFile) -> dict[str, MatrixDecomposition]:
        """Those of the records, by the name of the matrix."""
        costs = {step.pair.name: planned_seconds(step) for step in self.plan.decomposition.steps}
        decompositions = {
            each.matrix: each
            for each in read_records(MatrixDecomposition, self.records, "matrix")
            if each.matrix in costs and (not each.has_factors or factor_file(each.matrix).is_file())
        }
        if decompositions:
            finished = math.fsum(costs[name] for name in decompositions)
            self._progress.estimate.add("decomposition", finished, resumed=True)
        return decompositions

    def _candidate_set(self, deltas: LowRankDeltas) -> CandidateSet:
        plan = self.plan
        return CandidateSet(
            plan.models,
            deltas,
            plan.options,
            truncated_rank=plan.truncated_rank,
            taken=plan.taken_names,
            fetch=self.fetch,
        )

    def _finetune_model(self) -> LoadedModel:
        models = self.plan.models
        finetune = Candidate(FINETUNE, CandidateKind.CONTROL, models.finetune_skeleton, models.finetune_weights())
        return LoadedModel(finetune, self._loader)

    def _answer_twice(self, finetune: LoadedModel, answers: Answers) -> None:
        seed = self.plan.options.seed
        self._answer(answers, FINETUNE, finetune, seed)
        self._answer(answers, FINETUNE_AGAIN, finetune, candidate_seed(seed))

    def _store_reference(self, finetune: LoadedModel, scorer: Scorer) -> None:
        self.listener.began(FINETUNE)
        scorer.store_reference(finetune, self._on_tokens(FINETUNE, scorer))

    def _run_candidate(
        self, number: int, candidate: Candidate, scorer: Scorer, texts: Sequence[TextSet], answers: Answers
    ) -> None:
        started = time.perf_counter()
        self.listener.began(candidate.name)
        with LoadedModel(candidate, self._loader) as model:
            if answers_prompts(candidate.name, candidate.kind, self.plan.options):
                self._answer(answers, candidate.name, model, candidate_seed(self.plan.options.seed))
            self._score(number, candidate, model, scorer, texts)
            unread = sum(not scorer.can_read(model, i) for i in range(len(scorer.documents)))
        if unread:
            self._note(
                f"{candidate.name}: {unread:,} of {len(scorer.documents):,} documents are left out, because they have "
                "tokens that are not in its vocabulary"
            )
        self.seconds[candidate.name] = time.perf_counter() - started

    def _score(
        self, number: int, candidate: Candidate, model: LoadedModel, scorer: Scorer, texts: Sequence[TextSet]
    ) -> None:
        """A control, which must read zero, shows that on a part of each text."""
        if candidate.kind is not CandidateKind.CONTROL:
            return scorer.score(number, model, self._on_tokens(candidate.name, scorer))
        chosen = scorer.whole_batches(texts, self.plan.options.control_tokens)
        on_finished = self._progress.control(candidate.name, scorer.count_tokens(chosen))
        return scorer.score(number, model, on_finished, only=chosen)

    def _attribute(
        self, deltas: LowRankDeltas, scorer: Scorer, texts: Sequence[TextSet], candidates: Sequence[Candidate]
    ) -> tuple[AttributionResult, ...]:
        unit = self.plan.options.attribute
        if unit is None or self.plan.earlier is not None:
            return ()
        attribution = Attribution(
            models=self.plan.models,
            deltas=deltas,
            scorer=scorer,
            loader=self._loader,
            text=next((each for each in texts if each.own), texts[0]),
            unit=unit,
            rank=self.plan.headline_rank,
            all_parts=next(i for i, each in enumerate(candidates) if each.kind is CandidateKind.TRUNCATION),
            first_number=len(candidates),
            seed=self.plan.options.seed,
            on_tokens=self._progress.part,
        )
        if attribution.note is not None:
            self._note(attribution.note)
        return (attribution.measure(),)

    def _resume_answers(self) -> Answers:
        options, inputs = self.plan.options, self.plan.inputs
        earlier = finetune_records(self.plan.earlier) if self.plan.earlier else ()
        answers = Answers(
            prompts=with_ids(inputs.prompts, earlier),
            tokenizer=inputs.tokenizer,
            samples=options.samples,
            max_tokens=options.max_tokens,
            context=self.plan.models.context,
            batch=self.plan.answers_at_once,
            save_record=self.run_folder.append,
        )
        for record in (*earlier, *read_records(AnswerRecord, self.records, "answers")):
            answers.add(record)
        return answers

    def _answer(self, answers: Answers, name: str, model: LoadedModel, seed: int) -> None:
        if answers.prompts:
            self.listener.began(f"{name}: answers")
            answers.generate(name, model, seed, self._progress.answers(name, len(answers.prompts)))

    def _texts(self, answers: Answers) -> list[TextSet]:
        """The texts that were given, and the finetune's answers to the prompts."""
        own = [answer.to_document() for answer in answers.of_model(FINETUNE)]
        given = [(name, documents, False) for name, documents in self.plan.inputs.texts]
        texts: list[TextSet] = []
        first = 0
        for name, documents, is_own in (*given, (OWN_ANSWERS, [each for each in own if each.scored_tokens], True)):
            if documents:
                texts.append(TextSet(name, first, documents, is_own))
                first += len(documents)
        return texts

    def _scorer(self, texts: Sequence[TextSet]) -> Scorer:
        documents = [document for text in texts for document in text.documents]
        tokens = self.plan.memory.tokens_at_once
        return Scorer(documents, self.files, size=self.plan.options.batch, tokens=tokens)

    def _on_tokens(self, name: str, scorer: Scorer) -> OnFinished:
        return self._progress.texts(name, scorer.count_tokens(range(len(scorer.documents))))

    @cached_property
    def _loader(self) -> ModelLoader:
        options = self.plan.options
        streams = self.plan.memory.must_stream
        return ModelLoader(options.torch_device, options.torch_dtype, streams, self._progress.loaded)

    def _note(self, sentence: str) -> None:
        self.notes.append(sentence)
        self.listener.warned(sentence)
