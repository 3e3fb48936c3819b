"""The commands of eval.py, one function a command: its signature and docstring are the interface."""

import json
from itertools import takewhile

from slms.commands.compare import compare
from slms.commands.pathways import pathways
from slms.commands.perplexity import perplexity
from slms.commands.sae import sae

COMMANDS = {function.__name__: function for function in (perplexity, pathways, compare, sae)}


def joined(args: list[str]) -> list[str]:
    """`compare A B --flag` as the parser wants it: a command's run directories are one list.

    >>> joined(["compare", "runs/a/1", "runs/b/1", "--output_dir=x"])
    ['compare', '["runs/a/1", "runs/b/1"]', '--output_dir=x']
    """
    if args[:1] != ["compare"]:
        return args
    runs = list(takewhile(lambda arg: not arg.startswith("-"), args[1:]))
    return ["compare", *([json.dumps(runs)] if runs else []), *args[1 + len(runs) :]]
