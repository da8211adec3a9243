"""How much of a finetune is left when you are served a LoRA extracted from it?

    import deltarank

    results = deltarank.compare("org/base", "org/finetune", ranks=[16, 64])
    print(results.verdict.sentences[0])

The public names are listed in `__init__.pyi`. Each is imported when it is first used, so importing this package does
not import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
