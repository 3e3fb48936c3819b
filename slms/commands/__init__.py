"""The commands of eval.py. Each is one function, whose signature and docstring are its command line and its help.

subject     opens the model and the text that a command measures
coder       opens a sparse autoencoder at its place in a model
dynamick_points  measures what dynamick shows
study_jobs  trains the runs that a study needs, in processes of their own
export_coders  writes the coders of a run for Neuronpedia and circuit-tracer
arguments   reads command lines as people type them

ablation        which classes of tokens suffer without a pathway or a community of neurons
capture         writes the activations of a model's MLPs to disk
compare         shows runs side by side
doctor          what a run would find on this machine
dynamick        what executing a share of the MLPs costs in quality and brings in speed
export          writes a routed model, or the coders of a run, in the formats of other programs
features        what the latents of a sparse autoencoder mean
harness         runs lm-eval's tasks on a dense, routed or dynamic-k model
layers          lists the MLPs of a checkpoint
pathways        which tokens and word classes the pathways of a routed model serve
perplexity      the loss of a model on text, with its interval
probes          how often a model prefers the answer to the foil
sae             how good a sparse autoencoder is, beside PCA, a random coder and a coder of a random model
redundancy      what a routed model loses without its best pathways, or with those of a domain alone
sparsity        activation sparsity by layer
specialization  how specialised the units of a model are
study           whether routing beats its controls over seeds
suite           specialization across models of several sizes
"""

import ast
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from slms.cli import program
from slms.commands.arguments import CommandParser, command_lines

NAMES = (
    "layers",
    "perplexity",
    "pathways",
    "compare",
    "redundancy",
    "capture",
    "sparsity",
    "specialization",
    "probes",
    "ablation",
    "suite",
    "study",
    "sae",
    "features",
    "dynamick",
    "harness",
    "export",
    "doctor",
)
"""The commands in the order of `eval.py --help`; each is a function in the module of its name."""


def command(name: str) -> Callable[..., None]:
    """Import and return a command's function; only this one is imported, because its libraries take seconds to load.

    Raises:
        ValueError: no command has this name; the message suggests the nearest.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        meant = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(f"{name} is no command{meant} There are {', '.join(NAMES)}.")
    return getattr(importlib.import_module(f"slms.commands.{name}"), name)


def run(name: str, args: list[str], program: str) -> None:
    """Run a command once for each subject that its arguments name.

    Raises:
        ValueError: several subjects, and a command that writes one directory.
    """
    from jsonargparse import auto_cli

    function = command(name)
    lines = command_lines(args, function)
    if len(lines) > 1 and "out" in inspect.signature(function).parameters:
        subjects = ", ".join(line[0].partition("=")[2] for line in lines)
        raise ValueError(f"{name} writes one --out for one run, and {len(lines)} are named: {subjects}")
    for line in lines:
        auto_cli(function, args=line, as_positional=False, parser_class=CommandParser, prog=program)


def overview() -> str:
    """List every command with the first line of its docstring, which is read from the source without importing it."""
    from slms.cli import hanging

    width = max(map(len, NAMES))
    lines = hanging([(name, _first_line(name)) for name in NAMES], width, indent="  ")
    usage = f"usage: {program('eval.py')} COMMAND [SUBJECT ...] [--option value ...]"
    return "\n".join([usage, "", "Measure models and runs; COMMAND --help lists the options.", "", *lines])


def _first_line(name: str) -> str:
    tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    return (ast.get_docstring(found) or "").partition("\n")[0]


def main(args: list[str] | None = None) -> None:
    """The entry point of eval.py: a command and its arguments, or `--help`."""
    args = sys.argv[1:] if args is None else args
    if not args:
        raise ValueError(f"name a command: {', '.join(NAMES)}")
    if args[0] in ("-h", "--help"):
        print(overview())
    else:
        run(args[0], args[1:], f"{program('eval.py')} {args[0]}")
