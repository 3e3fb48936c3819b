"""The commands of eval.py, one function a command: its signature and docstring are the interface."""

from slms.commands.arguments import arranged
from slms.commands.compare import compare
from slms.commands.layers import layers
from slms.commands.pathways import pathways
from slms.commands.perplexity import perplexity
from slms.commands.sae import sae

COMMANDS = {function.__name__: function for function in (layers, perplexity, pathways, compare, sae)}

__all__ = ["COMMANDS", "arranged"]
