"""Routed MLPs that execute only the chosen pathways: reference, CPU and Triton implementations behind one function."""

from kernels.activations import ACTIVATIONS
from kernels.calibrate import calibrate
from kernels.dispatch import BACKENDS, explain, routed_mlp
from kernels.reference import routed_mlp_reference

__all__ = ["ACTIVATIONS", "BACKENDS", "calibrate", "explain", "routed_mlp", "routed_mlp_reference"]
