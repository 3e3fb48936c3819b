"""Routed MLPs that execute only the chosen pathways: reference, CPU and Triton implementations behind one function."""

from kernels.dispatch import BACKENDS, explain, routed_mlp
from kernels.reference import ACTIVATIONS, routed_mlp_reference

__all__ = ["ACTIVATIONS", "BACKENDS", "explain", "routed_mlp", "routed_mlp_reference"]
