"""Decides where an MLP under a rule runs dense, because its rule was measured slower there."""

import functools
import logging
from typing import NamedTuple

log = logging.getLogger(__name__)

FEW, MORE = 4, 8
"""Classes of calls by their number of tokens; above MORE, rules that choose for each token always run dense."""


class BreakEven(NamedTuple):
    """The densities from which an MLP runs dense, by the number of tokens of a call; at 1 the two are the same."""

    few: float
    """up to FEW tokens; where a rule is not one compiled call, one token"""
    more: float
    """up to MORE tokens"""


NEVER = BreakEven(1.0, 1.0)  # one set for all tokens is a smaller dense MLP
# By what is read whole and what by choice; .0 never paid. Where one compiled call runs the rule: measured at SmolLM2's
# shape (docs/benchmarks.md), rounded down. Where library calls and loops of `kernels.neurons` do: estimated from older
# figures of one token in fp32 (docs/log.md, "Rules that are slower than dense run dense").
COMPILED = {
    "output": BreakEven(0.75, 0.0),
    "gate": BreakEven(0.8, 0.35),
    "prediction": BreakEven(0.65, 0.35),
    "inputs": BreakEven(0.8, 0.45),
    "set": NEVER,
}
LIBRARY = {
    "output": BreakEven(0.0, 0.0),
    "gate": BreakEven(0.35, 0.0),
    "prediction": BreakEven(0.3, 0.0),
    "inputs": BreakEven(0.6, 0.0),
    "set": NEVER,
}


class Plan(NamedTuple):
    """How an MLP under a rule runs."""

    dense: bool
    why: str


@functools.lru_cache(maxsize=4096)
def plan(kind: str, density: float, few: bool, device: str, compiled: bool) -> Plan:
    """Decide for a kind of rule at a density, for calls of up to FEW tokens or of more; each is logged once.

    compiled: whether one compiled call runs the whole rule (`kernels.cpu.rule_rows`).
    """
    if density == 1.0:
        return Plan(True, "at density 1 it is the dense MLP")
    if device != "cpu":
        return Plan(False, f"its break-even on {device} is not measured")
    known = (COMPILED if compiled else LIBRARY)[kind]
    least = known.few if few else known.more
    tokens = f"{'up to' if few else 'more than'} {FEW if compiled else 1} tokens"
    found = Plan(density >= least, f"break-even density {least:g} for {tokens}{'' if compiled else ', not compiled'}")
    log.info("rules by %s at density %.2f run %s: %s", kind, density, "dense" if found.dense else "sparse", found.why)
    return found
