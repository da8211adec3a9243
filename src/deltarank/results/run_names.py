"""The name of a run's folder, from the reference of its finetune."""

from __future__ import annotations

import re
from pathlib import Path

from deltarank.results.hub_address import parse_hub_address
from deltarank.system import user_path

_GENERIC_NAME = re.compile(
    r"(hf[-_])?(pytorch_)?(model|merged|final|output|checkpoint|weights|adapter|adapter_model|latest|best|last|"
    r"consolidated|snapshot)s?([-_.]?\d+)*([-_](model|merged|final|hf|fp16|bf16))?|[0-9a-f]{40}|epoch[-_]?\d+|\d+",
    re.IGNORECASE,
)
"""Names that thousands of folders have. The name of the folder above says more."""


def run_name(finetune: str, *, above: int = 0) -> str:
    """A name in letters that every file system accepts.

    Of a Hub id: organisation, name and revision. Of a local path: the folder or file, after the folders above it for
    as long as the name is a generic one such as `model` or `checkpoint-500`.

    Args:
        above: the number of further folders above that the name of a local path begins with.
    """
    local = user_path(finetune)
    if local.exists() or local.is_absolute():
        name = _local_name(local.resolve(), above)
    else:
        address = parse_hub_address(finetune)
        words = [address.repo_id, address.revision] if address else [finetune.strip("/")]
        name = re.sub("[/@]", "--", "@".join(filter(None, words)))
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "finetune"


def _local_name(path: Path, above: int) -> str:
    stems = [path.stem if path.is_file() else path.name]
    while _GENERIC_NAME.fullmatch(stems[0]) and path.parent != path:
        path = path.parent
        stems.insert(0, path.name)
    return "--".join(filter(None, [*(each.name for each in reversed(path.parents[:above])), *stems]))
