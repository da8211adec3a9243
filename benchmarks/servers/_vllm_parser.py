"""Runs in vLLM's environment: reads commands from stdin, prints those that its own parser refuses, both as JSON."""

from __future__ import annotations

import json
import shlex
import sys

from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser


def main() -> None:
    parser = FlexibleArgumentParser()
    command = ServeSubcommand()
    command.subparser_init(parser.add_subparsers())
    refused = []
    for line in json.load(sys.stdin):
        try:
            command.validate(parser.parse_args(shlex.split(line)[1:]))
        except (SystemExit, Exception):
            refused.append(line)
    print(json.dumps(refused))


if __name__ == "__main__":
    main()
