"""`~` is the home folder in each path that a command or a function takes."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from tiny_checkpoints import base_weights, merged_lora, write

import deltarank
from commands import RunCommand
from deltarank.cli import deltarank as GROUP
from deltarank.cli.options import UserPath
from deltarank.results import Results

REFERENCES = {"base", "finetune", "finetunes", "adapter", "adapters", "models", "candidates", "texts", "prompts"}
"""Parameters that go to a function of the library as they are; the tests below give them with a `~`."""

NO_PATHS = {"words", "a", "b"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, with a base and a finetune."""
    weights = base_weights()
    write(tmp_path / "home" / "base", weights)
    write(tmp_path / "home" / "lora", merged_lora(weights, 2))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("deltarank.report.page.write.start_drawing", lambda chart: lambda: b"not drawn")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "home"


def path_parameters() -> Iterator[tuple[str, click.Parameter]]:
    """Arguments, and options that take a text of no fixed form."""
    for name, command in GROUP.commands.items():
        inner = command.commands.values() if isinstance(command, click.Group) else [command]
        for each in inner:
            yield from ((name, p) for p in each.params if isinstance(p, click.Argument) or _names_a_path(p))


def _names_a_path(parameter: click.Parameter) -> bool:
    return str(parameter.metavar) in ("FILE", "PATH", "DIR", "REF", "RUN", "OUT", "BLIND", "ADAPTER", "KEY")


def test_each_path_of_a_command_is_expanded_by_it_or_by_the_library() -> None:
    own = {f"{name} {p.name}" for name, p in path_parameters() if isinstance(p.type, UserPath)}
    passed_on = {f"{name} {p.name}" for name, p in path_parameters()} - own

    assert {"compare output", "report runs", "blind key", "blind votes", "demo output"} <= own
    assert {each.split()[1] for each in passed_on} <= REFERENCES | NO_PATHS


def test_the_functions(home: Path) -> None:
    results = deltarank.compare("~/base", Path("~/lora"), ranks=[2], output="~/run")
    adapter = deltarank.extract("~/base", "~/lora", rank=2, server="peft", output="~/adapter")
    verified = deltarank.verify("~/base", "~/lora", "~/adapter")
    chosen = deltarank.which_base("~/lora", ["~/base"])
    fleet = deltarank.fleet("~/base", ["~/lora"], ranks=[2], output="~/fleet")

    assert results.base.ref == verified.base.ref == str(home / "base")
    assert deltarank.open_results("~/run") == Results.load("~/run/results.json") == results
    assert type(adapter).load("~/adapter").rank == 2
    assert chosen.base is not None
    assert Results.load("~/fleet/lora").totals == results.totals
    assert fleet.finetunes[0].name == "lora"
    assert results.save("~/copy.json") == home / "copy.json"
    assert deltarank.compare("~/base", "~/lora", ranks=[2], output=home / "run") == results
    assert list(Path().iterdir()) == []


def test_the_commands(home: Path, command: RunCommand) -> None:
    words = ["compare", "~/base", "~/lora", "--ranks=2", "--output=~/run"]
    assert command(*words).code == 0
    assert command("report", "~/run", "--output=~/page").code == 0
    assert command("extract", "~/base", "~/lora", "-r2", "--server=peft", "-o~/adapter").code == 0
    assert command("compare", "~/base", "~/adapter", "--ranks=2", "-o", "~/of-adapter", "--no-report").code == 0

    assert {"run", "page", "adapter", "of-adapter"} <= {path.name for path in home.iterdir()}
    assert (home / "page" / "report.html").is_file()
    assert list(Path().iterdir()) == []


def test_a_folder_that_is_not_there_is_named_with_the_nearest(home: Path, command: RunCommand) -> None:
    for words in (["compare", "~/bass", "~/lora"], ["report", "~/bass"], ["verify", "~/base", "~/lora", "~/bass"]):
        done = command(*words)
        assert done.code in (1, 2)
        assert f"Did you mean '{home / 'base'}'?" in done.err
