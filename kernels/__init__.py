"""Routed MLPs that execute only the chosen pathways: reference, CPU and Triton implementations behind one function."""

from kernels.activations import ACTIVATIONS
from kernels.calibrate import calibrate
from kernels.dispatch import BACKENDS, explain, fused_mlp, fuses, routed_mlp
from kernels.reference import routed_mlp_reference
from kernels.router import Router, choose

__all__ = [
    "ACTIVATIONS",
    "BACKENDS",
    "Router",
    "calibrate",
    "choose",
    "explain",
    "fused_mlp",
    "fuses",
    "routed_mlp",
    "routed_mlp_reference",
]
