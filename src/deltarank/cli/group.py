"""The doorway: words in, exit code out. A file a verb; no maths, and nothing heavy before a verb runs.

Results go to stdout; everything else to stderr. Exit codes: 0 done, 1 the job failed, 2 it could not be meant,
130 stopped by the user.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from deltarank.cli.compare import compare
from deltarank.cli.demo import demo
from deltarank.cli.extract import extract
from deltarank.cli.outputs import outputs
from deltarank.cli.report import report
from deltarank.cli.streams import complain, forget_stdout, printable
from deltarank.cli.verify import verify
from deltarank.errors import DeltarankError
from deltarank.system import limit_openmp_spinning

__all__ = ["main"]

INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        import deltarank

        click.echo(f"deltarank {deltarank.__version__}")
        context.exit()


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="BASE and FINETUNE are a folder, a file of weights, or a Hub id (org/name, org/name@revision); of "
    "compare, extract and verify FINETUNE may be a LoRA on BASE.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def deltarank() -> None:
    """How much of a finetune is left when you are served a LoRA extracted from it?"""


for verb in (compare, extract, report, demo, verify, outputs):
    deltarank.add_command(verb)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Expected failures are printed as a message and a cure; what nobody expected keeps its traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    limit_openmp_spinning()
    try:
        code = deltarank.main(arguments, prog_name="deltarank", standalone_mode=False, obj=tuple(arguments))
    except DeltarankError as error:
        complain(f"{printable(error.message)}\n{printable(error.cure)}\nMore: docs/messages.md#{error.slug}")
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        goes_on = arguments[:1] in (["compare"], ["extract"], ["outputs"], ["demo"])
        complain("stopped. Finished matrices are kept; the same command goes on." if goes_on else "stopped.")
        return INTERRUPTED
    except SystemExit as end:  # click's way to say that the reader of our output closed the pipe (`| head`)
        code = end.code
        forget_stdout()
    return code if isinstance(code, int) else 0
