"""A result of each kind with every field set."""

from deltarank.results import (
    AttributionResult,
    BaseChoice,
    BaseKind,
    BlindBound,
    CandidateBase,
    CandidateKind,
    CandidateResult,
    Divergence,
    DocumentScore,
    Excerpt,
    FitEnergies,
    FitKind,
    Histogram,
    IgnoredTensor,
    Interval,
    Logits,
    Outcome,
    Outputs,
    Part,
    Reference,
    Sample,
    SliceScore,
    TensorChange,
    TensorFit,
    Text,
    TwoSampleTest,
    Verification,
    Writing,
)

DIVERGENCE = Divergence(0.1, None, 0.2, 0.05, 0.2, 0.3, 0.5, 0.9, 1.1)
LOGITS = Logits(
    text="own answers",
    tokens=120,
    documents=3,
    kld=DIVERGENCE,
    kld_reverse=DIVERGENCE,
    same_top_p=Interval(0.9, 0.8, 0.95),
    rms_delta_p=Interval(0.05),
    mean_delta_p=-0.01,
    ppl=7.0,
    reference_ppl=6.5,
    log_ppl_ratio=Interval(0.07, 0.05, 0.09),
    kept=Interval(0.8, 0.7, 0.9),
    tokens_to_tell=30.0,
    blind=(BlindBound(100, 0.7, 0.8),),
    by_document=(DocumentScore("a", 40, 0.1),),
    by_position=(SliceScore(0, 64, 30, 0.1),),
    by_confidence=(SliceScore(0.0, 0.25, 30, 0.4),),
    histogram=Histogram((-6.0, -5.0), (120,)),
)
OUTPUTS = Outputs(
    reference="a finetune",
    texts=(Text("own answers", 3, 120, own=True),),
    candidates=(
        CandidateResult("base", CandidateKind.BASE, logits=(LOGITS,)),
        CandidateResult(
            "rank 8", CandidateKind.RANK, 8, (LOGITS,), Writing(2, 4, 0.5, 0.6, 30.0, TwoSampleTest(0.6, 0.1, 99))
        ),
    ),
    again=Writing(2, 4, 0.5, 0.6, 30.0),
    samples=(Sample("Why?", "chat", {"finetune": "Because.", "rank 8": "It is."}, {"rank 8": ("So.", "Since.")}),),
    excerpts=(Excerpt("own answers", "a", ("Be", "cause"), {"rank 8": (None, 0.2)}),),
    attribution=(
        AttributionResult(8, "module", "own answers", (Part("mlp", None, "mlp", 0.1, 2.0, 0.5, 0.4),), 0.2, 0.5, None),
    ),
    sentences=("It speaks like itself.",),
    settings={"seed": 0},
)

VERIFICATION = Verification(
    base=Reference("org/base", "abc", {"model.safetensors": 10}),
    finetune=Reference("org/tuned"),
    adapter=Reference("/home/me/adapter"),
    server=None,
    tensors=(
        TensorFit(
            "a", 0, "mlp", (4, 3), Outcome.MEASURED, TensorChange.LORA, 2, 0.5, FitEnergies(4.0, 1.0, 0.5, 3.0, 2.5)
        ),
        TensorFit("b", None, "norm", (3,), Outcome.MEASURED, TensorChange.NONE, energies=FitEnergies(1.0, 1.0)),
    ),
    unused=(IgnoredTensor("c", "the model has no such module"),),
    notes=("a note",),
    kind=FitKind.SHORT,
    sentences=("It keeps 75 %.",),
    tool_version="0.1.0",
    created="2026-11-24T00:00:00+00:00",
)

CHOICE = BaseChoice(
    kind=BaseKind.FOUND,
    sentence="tuned came from org/one.",
    finetune=Reference("org/tuned"),
    candidates=(
        CandidateBase(Reference("org/other"), reason="it contains NaN or Inf"),
        CandidateBase(Reference("org/far", "main"), 1.4, {"a": 1.3, "b": 1.5}),
        CandidateBase(Reference("org/one", "abc"), 0.02, {"a": 0.01, "b": 0.03}),
    ),
    seed=-3,
)
