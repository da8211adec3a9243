"""How much of a finetune is left when you are served a LoRA extracted from it?

    import deltarank

    results = deltarank.compare("org/base", "org/finetune", ranks=[16, 64])
    print(results.verdict.sentences[0])

The public names are listed in `__init__.pyi`. Each is imported when it is first used, so importing this package does
not import torch.
"""

from typing import Any

import lazy_loader

_public_name, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from deltarank.system import tool_version

        return tool_version()
    return _public_name(name)
