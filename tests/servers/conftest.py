"""The real llama.cpp, and the tiny models of the zoo, as it and as transformers predict with them."""

from collections.abc import Iterator

import pytest
from llama_cpp import LlamaCpp
from served_family import Served, ServedFamily

from packages import NotAvailableError


@pytest.fixture(scope="session")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    try:
        server = LlamaCpp(tmp_path_factory.mktemp("llama.cpp"))
    except NotAvailableError as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture(scope="session")
def served(llama_cpp: LlamaCpp, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A model of the zoo by its name, made once."""
    made: dict[str, ServedFamily] = {}

    def get(name: str) -> ServedFamily:
        if name not in made:
            made[name] = ServedFamily.make(name, tmp_path_factory.mktemp(name.replace(" ", "-")), llama_cpp)
        return made[name]

    return get
