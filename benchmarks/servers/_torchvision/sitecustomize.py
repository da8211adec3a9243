"""Python imports this when it starts with this folder on its path, in vLLM's subprocesses, too.

torchvision from PyPI is built for CUDA: without a GPU its operators do not load, and its import then fails because it
describes two of them. Their names are enough for the import. No image is given to a model, so nothing calls them.
"""

from torch.library import define

for name in ("nms", "qnms"):
    define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
