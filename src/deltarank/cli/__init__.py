"""The command line: one file a command. Arguments in, exit code out."""

from deltarank.cli.group import deltarank, main

__all__ = ["deltarank", "main"]
