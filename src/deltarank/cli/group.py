"""The command `deltarank` and its exit codes. Nothing heavy is imported before a subcommand runs.

Results go to stdout, everything else to stderr. Exit codes: 0: done; 1: the job failed; 2: invalid usage;
3: `--check` failed; 130: interrupted.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

import click

from deltarank.cli.blind import blind
from deltarank.cli.compare import compare
from deltarank.cli.demo import demo
from deltarank.cli.endpoints import endpoints
from deltarank.cli.explain import explain, further_help
from deltarank.cli.extract import extract
from deltarank.cli.fleet import fleet
from deltarank.cli.help import Group
from deltarank.cli.outputs import outputs
from deltarank.cli.report import report
from deltarank.cli.streams import complain, forget_stdout, printable
from deltarank.cli.verify import verify
from deltarank.cli.which_base import which_base
from deltarank.errors import DeltarankError
from deltarank.system import installed_versions, limit_openmp_spinning, recorded_command

__all__ = ["main"]

INTERRUPTED = 130
"""128 + SIGINT, the exit code that shells use."""

RESUME_HINT = "Finished work is kept: repeat the same command to resume."


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo("\n".join(installed_versions()))
        context.exit()


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    examples=[
        ("Try everything without any model:", "deltarank demo"),
        ("What does a LoRA keep of this finetune?", "deltarank compare org/base org/finetune -o runs/mine"),
        ("What does a message mean?", "deltarank explain no-servable-rank"),
    ],
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the versions of deltarank and of what it runs on, and exit.",
)
def deltarank() -> None:
    """How much of a finetune is left when you are served a LoRA extracted from it?"""


for command in (compare, extract, verify, outputs, fleet, which_base, endpoints, blind, report, demo, explain):
    deltarank.add_command(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Expected failures are printed as a message with a cure. Unexpected exceptions keep their traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    limit_openmp_spinning()
    try:
        with recorded_command(shlex.join(["deltarank", *arguments])):
            code = deltarank.main(arguments, prog_name="deltarank", standalone_mode=False)
    except DeltarankError as error:
        complain(f"{printable(error.message)}\n{printable(error.cure)}\n{further_help(error.slug)}")
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        complain("Interrupted. " + RESUME_HINT if _can_resume(arguments) else "Interrupted.")
        return INTERRUPTED
    except OSError as error:  # click prints `--help` and `--version` itself; a broken pipe is its SystemExit
        if {"-h", "--help", "--version"}.isdisjoint(arguments):
            raise
        forget_stdout()
        complain(f"Cannot write to standard output: {error.strerror or error}.")
        return 1
    except SystemExit as end:  # raised by click when the reader of our output closed the pipe (`| head`)
        code = end.code
        forget_stdout()
    return code if isinstance(code, int) else 0


def _can_resume(arguments: Sequence[str]) -> bool:
    """Whether the command keeps finished work. A dry run has none."""
    keeps = ("compare", "extract", "outputs", "fleet", "endpoints", "demo")
    return bool(arguments) and arguments[0] in keeps and "--dry-run" not in arguments
