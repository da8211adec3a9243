"""The weights that an endpoint may serve, as the user names them, and the identification with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltarank.errors import UsageError
from deltarank.results import SERVABLE_RANKS, parse_hub_address
from deltarank.system import Default, expand_home

if TYPE_CHECKING:
    from deltarank.jobs.endpoints.known_models import KnownModels
    from deltarank.jobs.outputs import OutputsOptions
    from deltarank.runtime import ProgressListener

PARTIAL = "identification.partial"
"""The folder in the run for the factors of the candidates, while the models are open."""


@dataclass(frozen=True, kw_only=True)
class KnownWeights:
    """The base, the finetune, and what may be served in the finetune's place; see `deltarank.compare_endpoints`."""

    base: str
    finetune: str
    base_revision: str | None = None
    revision: str | None = None
    fetch: str = Default.FETCH
    ranks: tuple[int, ...] = SERVABLE_RANKS
    adapters: tuple[str, ...] = ()
    server: str | None = None
    yardsticks: tuple[str, ...] = ()
    device: str = Default.DEVICE
    dtype: str = Default.MODEL_DTYPE
    trust_remote_code: bool = False

    @classmethod
    def of(cls, weights: Sequence[Any] | None, **given: Any) -> KnownWeights | None:
        """
        Args:
            weights: the base and the finetune; None: there are none.
            given: the other fields; None stands for the default.

        Raises:
            UsageError: (slug "only-with-weights") one of them is given without weights.
        """
        known = {name: value for name, value in given.items() if value not in (None, (), [], False)}
        if weights is None:
            if known:
                raise _only_with_weights(next(iter(known)))
            return None
        base, finetune = (expand_home(str(each)) for each in weights)
        return cls.of_plain({"base": base, "finetune": finetune, **known})

    def at_commits(self, commits: Mapping[str, Any]) -> KnownWeights:
        """With the models of the Hub as they were at these commits, by "base" and "finetune"."""
        found = self.to_plain()
        for name, revision in (("base", "base_revision"), ("finetune", "revision")):
            address, commit = parse_hub_address(getattr(self, name)), commits.get(name)
            if address is not None and isinstance(commit, str):
                found |= {name: address.repo_id, revision: commit}
        return self.of_plain(found)

    @contextmanager
    def open(self, folder: Path, progress: ProgressListener) -> Iterator[KnownModels]:
        """The models, ready to be run.

        Args:
            folder: of the run.

        Raises:
            UsageError, CheckpointError, PairingError, AdapterError, JobError: see `ServedModels`.
        """
        from deltarank.jobs.endpoints.known_models import KnownModels
        from deltarank.jobs.outputs import ServedModels
        from deltarank.runtime import PairRefs

        options = self.options()
        refs = PairRefs.of(
            self.base, self.finetune, base_revision=self.base_revision, revision=self.revision, fetch=self.fetch
        )
        with (
            refs.base.open(self.fetch, progress) as base,
            refs.finetune.open(self.fetch, progress) as finetune,
            ServedModels(base, finetune, options, folder / PARTIAL, fetch=self.fetch, progress=progress) as served,
        ):
            yield KnownModels(served)

    def options(self) -> OutputsOptions:
        """Those of `outputs`, whose candidates these are. Raises UsageError."""
        from deltarank.jobs.outputs import OutputsOptions

        return OutputsOptions(
            ranks=self.ranks,
            adapters=self.adapters,
            server=self.server,
            yardsticks=self.yardsticks,
            device=self.device,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
        )

    def to_plain(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> KnownWeights:
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
        }
        return cls(**fields)


WEIGHTS_KEYWORDS = tuple(each.name for each in fields(KnownWeights) if each.name not in ("base", "finetune"))


@contextmanager
def open_weights(known: KnownWeights | None, folder: Path, progress: ProgressListener) -> Iterator[KnownModels | None]:
    """As `KnownWeights.open`; None where there are none."""
    if known is None:
        yield None
        return
    with known.open(folder, progress) as models:
        yield models


def _only_with_weights(name: str) -> UsageError:
    option = {"adapters": "--adapter", "yardsticks": "--yardstick"}.get(name, "--" + name.replace("_", "-"))
    return UsageError(
        f"{option} is about the models that an endpoint may serve, and no weights are given.",
        cure="Add --weights BASE FINETUNE.",
        slug="only-with-weights",
    )
