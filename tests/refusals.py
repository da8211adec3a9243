"""What every expected failure has: a slug that the docs explain, a printable message and a cure."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from deltarank.errors import DeltarankError


@contextmanager
def refused(
    slug: str, kind: type[DeltarankError] = DeltarankError, *, match: str | None = None
) -> Iterator[pytest.ExceptionInfo[DeltarankError]]:
    """Passes if the block raises an error of this kind and slug whose message matches."""
    with pytest.raises(kind, match=match) as caught:
        yield caught
    error = caught.value
    assert error.slug == slug
    assert error.message.isprintable()
    assert error.cure
