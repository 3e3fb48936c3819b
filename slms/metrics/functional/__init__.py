"""The metrics as pure functions of tensors. They need only torch (`modularity`, loaded when used, also igraph).

What is called legacy is a formula of one of the two prototypes that SLMS replaces; its docstring says of which.

causal          where the loss goes when a unit is taken away
chance          the permutation null in closed form
coherence       how alike in meaning the tokens are that activate a unit most
counts          everything that purity and SI need to know about a corpus, in constant memory
documents       specialization index of labels that whole documents carry
entropy         entropy in nats of a distribution that is known only through counts
graph           the co-activation graph of neurons and the modularity of a given partition of it
intervals       95 % intervals over documents and seeds, by bootstrap or jackknife
load            load of the pathways, stability of a router's choices, and what they capture of the output
matching        biases that give a control's choices the loads of a trained router
olmoe           vocabulary and domain specialization and co-activation of experts
purity          how much of the uncertainty about a token's class the chosen pathway removes
score           value, interval, permutation null, ceiling
sparsity        activation sparsity at the input of the down-projection
specialization  adjusted mutual information of a unit and a class
"""

import importlib

from slms.metrics.functional.coherence import semantic_coherence
from slms.metrics.functional.counts import joint_choices, joint_counts
from slms.metrics.functional.documents import document_specialization_index
from slms.metrics.functional.entropy import entropy
from slms.metrics.functional.graph import (
    PartitionModularity,
    adjusted_rand_index,
    coactivation,
    partition_modularity,
    partition_quality,
)
from slms.metrics.functional.intervals import (
    Beyond,
    Interval,
    beyond_control,
    document_loss,
    jackknife,
    paired_difference,
    paired_over_seeds,
)
from slms.metrics.functional.load import Utilization, captured_share, largest, router_saturation, utilization
from slms.metrics.functional.matching import load_error, matched_bias, matched_choice
from slms.metrics.functional.purity import purity, purity_legacy
from slms.metrics.functional.score import Score
from slms.metrics.functional.sparsity import (
    ActivationSparsity,
    LegacySparsity,
    activation_sparsity,
    activation_sparsity_legacy,
    cett_threshold,
    dropped_share,
    largest_within,
    sparsity_per_token,
)
from slms.metrics.functional.specialization import event_information, mutual_information, specialization_index

__all__ = [
    "ActivationSparsity",
    "Beyond",
    "Interval",
    "LegacySparsity",
    "PartitionModularity",
    "Score",
    "Utilization",
    "activation_sparsity",
    "activation_sparsity_legacy",
    "adjusted_rand_index",
    "beyond_control",
    "captured_share",
    "cett_threshold",
    "coactivation",
    "document_loss",
    "document_specialization_index",
    "dropped_share",
    "entropy",
    "event_information",
    "jackknife",
    "joint_choices",
    "joint_counts",
    "largest",
    "largest_within",
    "load_error",
    "matched_bias",
    "matched_choice",
    "modularity",
    "mutual_information",
    "paired_difference",
    "paired_over_seeds",
    "partition_modularity",
    "partition_quality",
    "purity",
    "purity_legacy",
    "router_saturation",
    "semantic_coherence",
    "sparsity_per_token",
    "specialization_index",
    "utilization",
]


def __getattr__(name: str):
    if name == "modularity":  # it needs igraph, which nothing else here imports or waits for
        return importlib.import_module("slms.metrics.communities").modularity
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
