"""Routed MLPs that execute only the chosen pathways: reference, CPU and Triton implementations behind one function.

call -> inputs and outputs; reference -> the specification; dispatch -> chooses the backend, by costs and calibrate;
backends -> tells which can run here; ops -> the backends as PyTorch operators; router -> the choice; cpu/, gpu/ ->
implementations; dense -> the fallback; activations -> values and derivatives; neurons -> single rows, for the rules of
dense models; gate_reference, gate, gate_ops, gate_train -> neurons chosen by their own gates; gate_plan, gate_gpu ->
which implementation runs them; cache -> where a machine's measurements are kept; timing -> the clock.
"""

if __name__ == "slms.kernels":
    from slms.kernels.activations import ACTIVATIONS
    from slms.kernels.backends import BACKENDS
    from slms.kernels.calibrate import calibrate
    from slms.kernels.call import Call, Layer
    from slms.kernels.dispatch import explain, fuses, prepare_fused, routed_mlp
    from slms.kernels.gate import gate_fuses, gate_mlp, gate_mlp_counted, gate_select, prepare_gate
    from slms.kernels.gate_plan import mean_density
    from slms.kernels.gate_reference import GateCall, gate_mlp_reference
    from slms.kernels.reference import routed_mlp_reference
    from slms.kernels.router import Router, choose
else:
    # In a checkout this directory lies where transformers looks for Hugging Face's package `kernels`. Without a file it
    # is no package to transformers, and nothing is imported a second time.
    __file__ = None  # type: ignore[assignment]

__all__ = [
    "ACTIVATIONS",
    "BACKENDS",
    "Call",
    "GateCall",
    "Layer",
    "Router",
    "calibrate",
    "choose",
    "explain",
    "fuses",
    "gate_fuses",
    "gate_mlp",
    "gate_mlp_counted",
    "gate_mlp_reference",
    "gate_select",
    "mean_density",
    "prepare_fused",
    "prepare_gate",
    "routed_mlp",
    "routed_mlp_reference",
]
