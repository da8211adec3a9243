"""The library's functions: extract a calibrated adapter, plan a calibration."""

from __future__ import annotations

from typing import Any, Unpack

from deltarank.errors import UsageError
from deltarank.jobs.calibrate.job import CalibrateJob
from deltarank.jobs.calibrate.options import CalibrateKeywords, CalibrateOptions
from deltarank.jobs.calibrate.plan import CalibrationPlan
from deltarank.jobs.extract import ExtractedAdapter
from deltarank.runtime import ProgressListener, Ref, parse_keywords, shows_keywords
from deltarank.system import user_path


@shows_keywords(CalibrateKeywords, CalibrateOptions)
def extract_calibrated(
    base: Ref,
    finetune: Ref,
    *,
    output: Ref,
    force: bool = False,
    progress: ProgressListener | None = None,
    **keywords: Unpack[CalibrateKeywords],
) -> ExtractedAdapter:
    """Writes a LoRA of the same form as `extract` does, whose factors are fitted to the finetune's predictions.

    It starts from the adapter that `extract` writes, and moves A and B down the gradient of the KL divergence from the
    finetune (KL distillation, Hinton et al. 2015), with the base's embeddings, norms and head as a server has them. The
    texts are split by document into three parts: one fits, one chooses the step, and one is only scored. The plain
    adapter is one of the choices: if nothing is better, it is written.

    Args:
        base, finetune, output, force, progress: as for `extract`. What is done is stored in OUTPUT.calibrating.
        calibrate: .txt, .md or .jsonl files or folders; or "own", the finetune's own answers to the built-in prompts.
        calibration_tokens: about how many tokens of the texts are used, of all three parts together.
        steps: of gradient descent, of about 1,024 tokens each.
        seed: of the split, the order of the documents, and the sampled answers.

    All other keywords are those of `extract`.

    Raises:
        UsageError: an argument is not usable, or the texts are too short.
        JobError: the model does not fit into memory, or PEFT does not load the adapter.
        DeltarankError: see `extract` and `outputs`.
    """
    refs, options = parse_keywords(base, finetune, keywords, CalibrateOptions)
    progress = progress or ProgressListener()
    with refs.open(progress) as checkpoints:
        return CalibrateJob(*checkpoints, options).run(user_path(output), force=force, progress=progress)


@shows_keywords(CalibrateKeywords, CalibrateOptions)
def held_out_documents(base: Ref, finetune: Ref, **keywords: Unpack[CalibrateKeywords]) -> list[dict[str, Any]]:
    """The documents that `extract_calibrated` only scores, with the same texts and options, so that others can.

    Each is {"text": ...} or {"messages": [...]}, as a line of a .jsonl file, some with a "group" of documents that
    belong together. `deltarank outputs --adapter ADAPTER --text FILE` scores them.

    Arguments as for `extract_calibrated`.

    Raises:
        UsageError: the texts contain "own": its answers are sampled during the calibration and not kept.
    """
    refs, options = parse_keywords(base, finetune, keywords, CalibrateOptions)
    with refs.without_download().open(ProgressListener()) as checkpoints:
        texts = CalibrateJob(*checkpoints, options).texts
        if texts.answers:
            raise UsageError(
                "The finetune's own answers are not kept, so the documents that were held out cannot be found again.",
                cure="Calibrate on files.",
                slug="text-not-found",
            )
        return [dict(record) for record in texts.split([]).score]


@shows_keywords(CalibrateKeywords, CalibrateOptions)
def plan_calibration(
    base: Ref, finetune: Ref, *, output: Ref | None = None, force: bool = False, **keywords: Unpack[CalibrateKeywords]
) -> CalibrationPlan:
    """What `extract_calibrated` would do, from headers, texts and the tokenizer: no tensor is read.

    No model is downloaded. Arguments and errors as for `extract_calibrated`. Nothing is written: of `output` it is
    checked that it can be used.
    """
    refs, options = parse_keywords(base, finetune, keywords, CalibrateOptions)
    with refs.without_download().open(ProgressListener()) as checkpoints:
        job = CalibrateJob(*checkpoints, options)
        if output is not None:
            job.check_output(user_path(output), force=force)
        job.texts.check()
        return job.plan
