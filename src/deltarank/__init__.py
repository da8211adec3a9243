"""How much of a finetune is left when you are served a LoRA extracted from it?

    import deltarank

    results = deltarank.compare("org/base", "org/finetune", ranks=[16, 64])
    print(results.verdict.sentences[0])

Names are resolved when they are first used: importing this package loads no torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltarank.bases import BaseChoice, which_base
    from deltarank.compare import Plan, Watch, compare, open_results, plan
    from deltarank.errors import DeltarankError
    from deltarank.extract import Adapter, ExtractionPlan, extract, plan_extraction
    from deltarank.outputs import Outputs, OutputsPlan, outputs, plan_outputs
    from deltarank.results import Loss, MatrixResult, Outcome, Results, Verdict
    from deltarank.verify import Verification, verify

    __version__: str

__all__ = [
    "Adapter",
    "BaseChoice",
    "DeltarankError",
    "ExtractionPlan",
    "Loss",
    "MatrixResult",
    "Outcome",
    "Outputs",
    "OutputsPlan",
    "Plan",
    "Results",
    "Verdict",
    "Verification",
    "Watch",
    "__version__",
    "compare",
    "extract",
    "open_results",
    "outputs",
    "plan",
    "plan_extraction",
    "plan_outputs",
    "verify",
    "which_base",
]

_HOMES = {
    "Adapter": "deltarank.extract",
    "BaseChoice": "deltarank.bases",
    "DeltarankError": "deltarank.errors",
    "ExtractionPlan": "deltarank.extract",
    "Loss": "deltarank.results",
    "MatrixResult": "deltarank.results",
    "Outcome": "deltarank.results",
    "Outputs": "deltarank.outputs",
    "OutputsPlan": "deltarank.outputs",
    "Plan": "deltarank.compare",
    "Results": "deltarank.results",
    "Verdict": "deltarank.results",
    "Verification": "deltarank.verify",
    "Watch": "deltarank.compare",
    "compare": "deltarank.compare",
    "extract": "deltarank.extract",
    "open_results": "deltarank.compare",
    "outputs": "deltarank.outputs",
    "plan": "deltarank.compare",
    "plan_outputs": "deltarank.outputs",
    "plan_extraction": "deltarank.extract",
    "verify": "deltarank.verify",
    "which_base": "deltarank.bases",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # 30 ms that `--help` need not wait for

        return version("deltarank")
    if name not in _HOMES:
        raise AttributeError(f"module 'deltarank' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `deltarank.compare` the function.

    Whoever imports the module of that name first would otherwise leave the module here under it.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in _HOMES:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
