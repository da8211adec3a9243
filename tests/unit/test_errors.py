"""The tree of expected failures."""

import inspect
import pickle

import pytest

from deltarank import errors

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.DeltarankError)]


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_error_has_a_message_a_cure_and_an_exit_code(kind: type[errors.DeltarankError]) -> None:
    error = kind("This is so.", cure="Do that.", slug="a-slug")

    assert str(error) == "This is so.\nDo that."
    assert (error.message, error.cure, error.slug) == ("This is so.", "Do that.", "a-slug")
    assert kind.exit_code == (2 if issubclass(kind, errors.UsageError) else 1)
    assert kind.__name__ in (errors.__doc__ or "")  # the tree is drawn there
    assert kind.__doc__
    with pytest.raises(TypeError):
        kind("This is so.")  # type: ignore[call-arg]


def test_usage_is_not_a_job() -> None:
    assert not issubclass(errors.UsageError, errors.JobError)
    assert issubclass(errors.HeaderError, errors.CheckpointError)


def test_an_error_passes_between_processes() -> None:
    error = errors.OutputError("It exists.", cure="Move it.", slug="output-exists")
    copy = pickle.loads(pickle.dumps(error))

    assert (str(copy), copy.slug) == (str(error), error.slug)
