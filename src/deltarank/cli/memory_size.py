"""A size of memory on the command line: 24GB, 80GiB, 1.5 TB."""

from __future__ import annotations

import re

import click

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]i?|)b?", re.IGNORECASE | re.ASCII)


def memory_size(text: str) -> int:
    """Bytes, from decimal units (GB) or binary ones (GiB).

    Raises:
        click.BadParameter: it is something else.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r:.80} is not a size of memory, such as 24GB or 80GiB.")
    return int(float(match[1]) * _UNITS[match[2].lower()])
