"""One job of `outputs`: the finetune speaks, then each candidate in its model; what is done stays done."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from deltarank.divergence import Document
from deltarank.jobs.outputs.answers import AnswerRecord, Answers
from deltarank.jobs.outputs.attribution import Attribution
from deltarank.jobs.outputs.candidates import Candidate, CandidateSet
from deltarank.jobs.outputs.job import Job
from deltarank.jobs.outputs.loaded_model import LoadedModel, ModelLoader
from deltarank.jobs.outputs.low_rank import Decomposed, Decomposer, LowRank, carried, refuse_failures
from deltarank.jobs.outputs.options import AGAIN, FINETUNE
from deltarank.jobs.outputs.plan import part_names
from deltarank.jobs.outputs.scoring import Scorer, TextSet
from deltarank.jobs.outputs.summary import Material, findings
from deltarank.models import get_yardstick
from deltarank.results import CandidateKind, Outputs, headline_rank, read_records, to_plain
from deltarank.runtime import ProgressListener, Record, RunFolder, TimeEstimate, WorkerPool, make_plan

OWN = "its own answers"


@dataclass
class Run:
    """One job over two checkpoints.

    run_folder          of the job's own folder, in which factors, predictions and scores lie, too
    """

    job: Job
    candidate_set: CandidateSet
    run_folder: RunFolder
    progress: ProgressListener
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.plan, self.models, self.options = self.job.plan, self.job.models, self.job.options
        self.notes: list[str] = []
        for note in self.plan.notes:
            self._note(note)

    def go(self, records: Sequence[Record]) -> Outputs:
        self._estimate = TimeEstimate(self.progress, self.plan.seconds)
        answers = self._answers(records)
        low = self._decomposed(records)
        candidates = self._candidates(low)
        texts, scorer = self._refer(answers)
        for number, candidate in enumerate(candidates):
            self._take_turn(number, candidate, scorer, answers)
        attribution = self._swaps(low, scorer, len(candidates)).attributions(texts) if self.options.attribute else ()
        return findings(
            Material(
                reference=self.plan.finetune.reference.short_name,
                options=self.options,
                candidates=candidates,
                texts=texts,
                scorer=scorer,
                answers=answers,
                tokenizer=self.job.tokenizer,
                attribution=attribution,
                headline=self._headline,
                notes=tuple(self.notes),
                seconds=self.seconds,
            )
        )

    def _refer(self, answers: Answers) -> tuple[list[TextSet], Scorer]:
        """The finetune answers, and reads everything."""
        finetune = Candidate(FINETUNE, CandidateKind.CONTROL, self.models.skeleton, self.models.of_finetune())
        with LoadedModel(finetune, self._loader) as model:
            if self.job.prompts:
                self._write(answers, FINETUNE, model, self.options.seed)
                self._write(answers, AGAIN, model, self.options.seed + 1)
            texts, scorer = self._scorer(answers)
            self.progress.began(FINETUNE)
            scorer.refer(model, self._read(FINETUNE))
        return texts, scorer

    # ---- what the candidates are made of

    def _decomposed(self, records: Sequence[Record]) -> LowRank:
        """All matrices, those of an earlier process among them."""
        pairs = carried(self.models.pairing.pairs)
        steps = make_plan(self.plan.base, self.plan.finetune, self.models.pairing, self.options.settings).steps
        numbers = {pair.name: number for number, pair in enumerate(pairs)}
        place = partial(_factor_file, self.run_folder.folder, numbers)
        found = {each.matrix: each for each in read_records(Decomposed, records, "matrix")}
        found = {name: each for name, each in found.items() if not each.rank or place(name).is_file()}
        waiting = [step for step in steps if step.pair.name in numbers and step.pair.name not in found]
        self._estimate.add("decomposition", self.plan.decomposing * (len(found) / max(len(pairs), 1)), resumed=True)
        pool = WorkerPool(lambda: Decomposer(self.options.settings, max(self.options.ranks), place), 1)
        for step, each in pool.results([[step] for step in waiting]):
            found[each.matrix] = each
            refuse_failures({each.matrix: each})
            self.run_folder.append(to_plain(each))
            self._estimate.add(step.pair.name, self.plan.decomposing / max(len(pairs), 1))
        return LowRank({pair.name: pair for pair in pairs}, found, place, self.options.device)

    def _candidates(self, low: LowRank) -> list[Candidate]:
        options, candidate_set = self.options, self.candidate_set
        adapters = zip(options.adapters, options.adapter_names, strict=True)
        models = zip(options.models, options.model_names, strict=True)
        return [
            *candidate_set.controls(),
            candidate_set.base(),
            *candidate_set.ranks(low, options.ranks),
            *(candidate_set.adapter(folder, options.server, name) for folder, name in adapters),
            *(candidate_set.model(ref, name) for ref, name in models),
            *(candidate_set.yardstick(get_yardstick(name)) for name in options.yardsticks),
        ]

    @property
    def _loader(self) -> ModelLoader:
        return ModelLoader(self.options.device, self.options.torch_dtype, self.plan.streams)

    @property
    def _headline(self) -> int:
        largest = max((min(pair.shape) for pair in self.models.pairing.pairs), default=0)
        return headline_rank(self.options.ranks, largest)

    # ---- what they say

    def _answers(self, records: Sequence[Record]) -> Answers:
        options = self.options
        answers = Answers(
            self.job.prompts,
            self.job.tokenizer,
            options.samples,
            options.max_tokens,
            min(self.models.skeleton.context, self.models.base_skeleton.context),
            options.batch,
            self.run_folder.append,
        )
        for record in read_records(AnswerRecord, records, "answers"):
            answers.resume(record)
        return answers

    def _scorer(self, answers: Answers) -> tuple[list[TextSet], Scorer]:
        """The texts that were given, and the finetune's own."""
        own = [answer.to_document() for answer in answers.of(FINETUNE)]
        given = [(name, documents, False) for name, documents in self.job.texts]
        sets: list[TextSet] = []
        documents: list[Document] = []
        for name, some, is_own in (*given, (OWN, [each for each in own if each.scored_tokens], True)):
            if some:
                sets.append(TextSet(name, tuple(range(len(documents), len(documents) + len(some))), is_own))
                documents += some
        size, tokens = self.options.batch, self.plan.tokens_at_once
        return sets, Scorer(documents, self.run_folder.folder, size=size, tokens=tokens)

    def _take_turn(self, number: int, candidate: Candidate, scorer: Scorer, answers: Answers) -> None:
        started = time.perf_counter()
        self.progress.began(candidate.name)
        with LoadedModel(candidate, self._loader) as model:
            if self.job.prompts and candidate.kind is not CandidateKind.CONTROL:
                self._write(answers, candidate.name, model, self.options.seed + 1)
            scorer.score(number, model, self._read(candidate.name))
            unread = [i for i in range(len(scorer.documents)) if not scorer.can_read(model, i)]
        if unread:
            self._note(
                f"{candidate.name}: {len(unread):,} of {len(scorer.documents):,} documents hold tokens that its "
                "vocabulary lacks, and are left out"
            )
        self.seconds[candidate.name] = time.perf_counter() - started

    def _note(self, sentence: str) -> None:
        self.notes.append(sentence)
        self.progress.warned(sentence)

    def _write(self, answers: Answers, who: str, model: LoadedModel, seed: int) -> None:
        self.progress.began(f"{who}: answers")
        answers.write(who, model, seed, lambda prompts: self._estimate.add(who, prompts * self.plan.a_prompt))

    def _read(self, who: str) -> Callable[[int], None]:
        return lambda tokens: self._estimate.add(who, tokens * self.plan.a_token)

    def _swaps(self, low: LowRank, scorer: Scorer, first: int) -> Attribution:
        parts = part_names(self.models.pairing, self.options.attribute)
        unit = self.options.attribute or ""
        return Attribution(
            self.candidate_set, low, scorer, self._loader, parts, unit, self._headline, first, self._read
        )


def _factor_file(folder: Path, numbers: Mapping[str, int], name: str) -> Path:
    """By number: a tensor's name never becomes a path."""
    return folder / f"{numbers[name]:05}.factors"


def has_scores(folder: Path) -> bool:
    """Whether a document was scored."""
    return any(folder.glob("scores-*/*.npz"))


def clear(folder: Path) -> None:
    """Lets what a job kept go: only what we made."""
    for inner in ("reference", *(path.name for path in folder.glob("scores-[0-9]*"))):
        shutil.rmtree(folder / inner, ignore_errors=True)
    for path in (*folder.glob("[0-9]*.factors*"), folder / "run.json", folder / "matrices.jsonl"):
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
