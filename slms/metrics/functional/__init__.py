"""The metrics as pure functions of tensors; torch is all they know."""

from slms.metrics.functional.counts import joint_choices, joint_counts
from slms.metrics.functional.entropy import entropy
from slms.metrics.functional.intervals import Interval, document_loss, jackknife, paired_difference
from slms.metrics.functional.load import Utilization, router_saturation, utilization
from slms.metrics.functional.purity import purity, purity_legacy
from slms.metrics.functional.score import Score
from slms.metrics.functional.specialization import event_information, mutual_information, specialization_index

__all__ = [
    "Interval",
    "Score",
    "Utilization",
    "document_loss",
    "entropy",
    "event_information",
    "jackknife",
    "joint_choices",
    "joint_counts",
    "mutual_information",
    "paired_difference",
    "purity",
    "purity_legacy",
    "router_saturation",
    "specialization_index",
    "utilization",
]
