"""The commands of eval.py, one function a command: its signature and docstring are the interface."""

from slms.commands.compare import compare
from slms.commands.pathways import pathways
from slms.commands.perplexity import perplexity

COMMANDS = {function.__name__: function for function in (perplexity, pathways, compare)}
