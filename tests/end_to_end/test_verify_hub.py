"""`deltarank verify` of adapters on the Hub: the real client against a Hub on this machine."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import deltarank
import peft_adapters as made
from commands import LineProcess
from hub import FakeHub, client_environment

RANK = 4
ALL = [f"{word}_proj" for word in ("q", "k", "v", "o", "gate", "up", "down")]

_RUN = """
import contextlib, io, json, sys
from deltarank.cli import main
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(json.loads(line))
    print("@" + json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    base = made.write_base(made.llama, home / "base")
    tuned = made.finetune(base, home / "tuned")
    factors = made.best_factors(base, tuned, RANK)
    made.write_adapter(home / "best", factors, r=RANK, lora_alpha=RANK, target_modules=ALL)
    made.write_adapter(home / "half", factors, r=RANK, lora_alpha=RANK / 2, target_modules=ALL)
    (home / "best" / "optimizer.bin").write_bytes(b"much else")
    made.write_adapter(home / "pickled", {}, r=RANK)
    (home / "pickled" / "adapter_model.safetensors").rename(home / "pickled" / "adapter_model.bin")
    return home


@pytest.fixture(scope="module")
def hub(models: Path) -> Iterator[FakeHub]:
    with FakeHub() as hub:
        for name in ("base", "tuned", "best", "pickled"):
            hub.add(f"org/{name}", models / name)
        hub.add("org/best", models / "half", revision="half")
        hub.add("org/secret", models / "best", private=True)
        yield hub


def run(hub: FakeHub, home: Path, *commands: Sequence[object]) -> list[tuple[int, str, str]]:
    """The commands in one process, with the real client."""
    with LineProcess(_RUN, client_environment(hub, home)) as process:
        return [process.request(["verify", *map(str, command)]) for command in commands]


def without_places(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in ("base", "finetune", "adapter", "created")}


REFUSED = {
    "org/base": "adapter-not-found",
    "org/pickled": "bad-header",
    "org/nothing": "hub-not-found",
    "org/secret": "hub-not-found",
    "org/best@gone": "hub-no-revision",
    "./nothing": "adapter-not-found",
    "a/b/c/d": "adapter-not-found",
}


def test_an_adapter_on_the_hub_is_measured_as_the_same_on_disk(models: Path, hub: FakeHub, tmp_path: Path) -> None:
    local = deltarank.verify(models / "base", models / "tuned", models / "best").to_plain()
    here = (models / "base", models / "tuned")
    one, other, revision, *refused = run(
        hub,
        tmp_path,
        ("org/base", "org/tuned", "org/best", "--json", "-q"),
        (*here, "org/best@half", "--json", "-q"),
        (*here, "hf://org/best", "--adapter-revision", "half", "--json", "-q"),
        *((*here, ref, "-q") for ref in REFUSED),
    )
    found, half, again = (json.loads(text) for _, text, _ in (one, other, revision))

    assert without_places(found) == without_places(local)
    assert found["adapter"]["ref"] == half["adapter"]["ref"] == "org/best"
    assert found["adapter"]["revision"] == hub.repos["org/best"].commit("main")
    assert half["adapter"]["revision"] == hub.repos["org/best"].commit("half")
    assert half["kind"] == "misscaled"
    assert without_places(again) == without_places(half)
    assert "optimizer.bin" not in hub.downloaded()
    for (ref, slug), (code, out, err) in zip(REFUSED.items(), refused, strict=True):
        assert (code, out) == (1, ""), ref
        assert f"docs/messages.md#{slug}" in err, ref
