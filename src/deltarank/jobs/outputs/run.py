"""One job of `outputs`: the finetune speaks, then each candidate in its turn; what is done stays done."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from deltarank.divergence import Document
from deltarank.jobs.outputs.answers import Answers
from deltarank.jobs.outputs.attribution import Swaps
from deltarank.jobs.outputs.candidates import Cast, Member
from deltarank.jobs.outputs.job import Job
from deltarank.jobs.outputs.loaded_model import Maker, Turn
from deltarank.jobs.outputs.low_rank import Decomposed, Decomposer, LowRank, carried, refuse_failures
from deltarank.jobs.outputs.options import AGAIN, FINETUNE
from deltarank.jobs.outputs.plan import part_names
from deltarank.jobs.outputs.scoring import Scorer, TextSet
from deltarank.jobs.outputs.summary import Material, findings
from deltarank.models import own_document, yardstick
from deltarank.results import CandidateKind, Outputs, headline_rank
from deltarank.runtime import Crew, Journal, Pace, Record, Watch, make_plan

OWN = "its own answers"


@dataclass
class Run:
    """One job over two checkpoints.

    journal          of the job's own folder, in which factors, predictions and scores lie, too
    """

    job: Job
    cast: Cast
    journal: Journal
    watch: Watch
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.plan, self.stage, self.brief = self.job.plan, self.job.stage, self.job.brief
        self.notes: list[str] = []
        for note in self.plan.notes:
            self._note(note)

    def go(self, records: Sequence[Record]) -> Outputs:
        self._pace = Pace(self.watch, self.plan.seconds)
        answers = self._answers(records)
        low = self._decomposed(records)
        members = self._members(low)
        texts, scorer = self._refer(answers)
        for number, member in enumerate(members):
            self._take_turn(number, member, scorer, answers)
        attribution = self._swaps(low, scorer, len(members)).attributions(texts) if self.brief.attribute else ()
        return findings(
            Material(
                reference=self.plan.finetune.reference.short_name,
                brief=self.brief,
                members=members,
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
        finetune = Member(FINETUNE, CandidateKind.CONTROL, self.stage.plan, self.stage.of_finetune())
        with Turn(finetune, self._maker) as turn:
            if self.job.prompts:
                self._write(answers, FINETUNE, turn, self.brief.seed)
                self._write(answers, AGAIN, turn, self.brief.seed + 1)
            texts, scorer = self._scorer(answers)
            self.watch.began(FINETUNE)
            scorer.refer(turn, self._read(FINETUNE))
        return texts, scorer

    # ---- what the candidates are made of

    def _decomposed(self, records: Sequence[Record]) -> LowRank:
        """All matrices, those of an earlier process among them."""
        pairs = carried(self.stage.pairing.pairs)
        steps = make_plan(self.plan.base, self.plan.finetune, self.stage.pairing, self.brief.settings).steps
        numbers = {pair.name: number for number, pair in enumerate(pairs)}
        place = partial(_factor_file, self.journal.folder, numbers)
        found = {each["matrix"]: Decomposed.from_plain(each) for each in records if "matrix" in each}
        found = {name: each for name, each in found.items() if not each.rank or place(name).is_file()}
        waiting = [step for step in steps if step.pair.name in numbers and step.pair.name not in found]
        self._pace.add("decomposition", self.plan.decomposing * (len(found) / max(len(pairs), 1)), kept=True)
        crew = Crew(lambda: Decomposer(self.brief.settings, max(self.brief.ranks), place), 1)
        for step, each in crew.results([[step] for step in waiting]):
            found[each.name] = each
            refuse_failures({each.name: each})
            self.journal.append(each.to_plain())
            self._pace.add(step.pair.name, self.plan.decomposing / max(len(pairs), 1))
        return LowRank({pair.name: pair for pair in pairs}, found, place, self.brief.device)

    def _members(self, low: LowRank) -> list[Member]:
        brief, cast = self.brief, self.cast
        adapters = zip(brief.adapters, brief.adapter_names, strict=True)
        models = zip(brief.models, brief.model_names, strict=True)
        return [
            *cast.controls(),
            cast.base(),
            *cast.ranks(low, brief.ranks),
            *(cast.adapter(folder, brief.server, name) for folder, name in adapters),
            *(cast.model(ref, name) for ref, name in models),
            *(cast.yardstick(name, yardstick(name)) for name in brief.yardsticks),
        ]

    @property
    def _maker(self) -> Maker:
        return Maker(self.brief.device, self.brief.torch_dtype, self.plan.streams)

    @property
    def _headline(self) -> int:
        largest = max((min(pair.shape) for pair in self.stage.pairing.pairs), default=0)
        return headline_rank(self.brief.ranks, largest)

    # ---- what they say

    def _answers(self, records: Sequence[Record]) -> Answers:
        brief = self.brief
        answers = Answers(
            self.job.prompts,
            self.job.tokenizer,
            brief.samples,
            brief.max_tokens,
            min(self.stage.plan.context, self.stage.base_plan.context),
            brief.batch,
            self.journal.append,
        )
        for record in records:
            if "answers" in record:
                answers.take_over(record)
        return answers

    def _scorer(self, answers: Answers) -> tuple[list[TextSet], Scorer]:
        """The texts that were given, and the finetune's own."""
        own = [own_document(answer) for answer in answers.of(FINETUNE)]
        given = [(name, documents, False) for name, documents in self.job.texts]
        sets: list[TextSet] = []
        documents: list[Document] = []
        for name, some, is_own in (*given, (OWN, [each for each in own if each.tokens], True)):
            if some:
                sets.append(TextSet(name, tuple(range(len(documents), len(documents) + len(some))), is_own))
                documents += some
        size, tokens = self.brief.batch, self.plan.tokens_at_once
        return sets, Scorer(documents, self.journal.folder, size=size, tokens=tokens)

    def _take_turn(self, number: int, member: Member, scorer: Scorer, answers: Answers) -> None:
        started = time.perf_counter()
        self.watch.began(member.name)
        with Turn(member, self._maker) as turn:
            if self.job.prompts and member.kind is not CandidateKind.CONTROL:
                self._write(answers, member.name, turn, self.brief.seed + 1)
            scorer.score(number, turn, self._read(member.name))
            unread = [i for i in range(len(scorer.documents)) if not scorer.can_read(turn, i)]
        if unread:
            self._note(
                f"{member.name}: {len(unread):,} of {len(scorer.documents):,} documents hold tokens that its "
                "vocabulary lacks, and are left out"
            )
        self.seconds[member.name] = time.perf_counter() - started

    def _note(self, sentence: str) -> None:
        self.notes.append(sentence)
        self.watch.warned(sentence)

    def _write(self, answers: Answers, who: str, turn: Turn, seed: int) -> None:
        self.watch.began(f"{who}: answers")
        answers.write(who, turn, seed, lambda prompts: self._pace.add(who, prompts * self.plan.a_prompt))

    def _read(self, who: str) -> Callable[[int], None]:
        return lambda tokens: self._pace.add(who, tokens * self.plan.a_token)

    def _swaps(self, low: LowRank, scorer: Scorer, first: int) -> Swaps:
        parts = part_names(self.stage.pairing, self.brief.attribute)
        unit = self.brief.attribute or ""
        return Swaps(self.cast, low, scorer, self._maker, parts, unit, self._headline, first, self._read)


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
