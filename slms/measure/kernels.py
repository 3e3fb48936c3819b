"""Measures, once, which backend is fastest for a routed model on this machine; what is known is not measured again."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from slms.kernels.calibrate import calibrate
from slms.kernels.costs import Shape, key, load_table
from slms.kernels.dispatch import candidates, explain
from slms.models.routed import routed_modules
from slms.models.routed_mlp import RoutedMLP


@dataclass(frozen=True)
class KernelOptions:
    """How routed MLPs are executed.

    Args:
        calibrate: first time every backend at this model's shapes, and keep the table; by default, backends are chosen
            by estimate on a machine that has no table.
    """

    calibrate: bool = False


def calibrate_kernels(
    model: nn.Module, tokens: Sequence[int], dtype: torch.dtype, training: bool = False, seconds: float = 0.2
) -> list[str]:
    """Calibrate every shape of the model's routed MLPs at these numbers of tokens; returns a line for what each runs.

    A shape, type and direction that the machine's table already has at these numbers of tokens is not timed again.
    tokens: numbers of tokens in a call, largest last. dtype: type of the MLPs. training: forward and backward.
    """
    lines, seen = [], set()
    for mlp in routed_modules(model, RoutedMLP).values():
        shape = shape_of(mlp, dtype, training)
        if shape in seen:
            continue
        seen.add(shape)
        density = mlp.k / mlp.config.n_pathways
        rows = load_table().get(key(shape), [])
        known = {row["tokens"] for row in rows if set(candidates(shape)) <= row["us"].keys()}
        if not set(tokens) <= known:
            calibrate(
                shape.d_model,
                shape.d_ff,
                shape.n_pathways,
                gated=shape.gated,
                activation=mlp.activation,
                dtype=dtype,
                device=shape.device,
                training=training,
                tokens=sorted(known | set(tokens)),
                densities=sorted({density, 0.25, 0.5, 1.0}),
                seconds=seconds,
            )
        said = explain(
            tokens[-1],
            shape.d_model,
            mlp.offsets,
            density,
            gated=shape.gated,
            training=training,
            dtype=dtype,
            device=shape.device,
        )
        source = "already calibrated" if set(tokens) <= known else "calibrated now"
        direction = "training" if training else "inference"
        lines.append(f"routed MLPs {shape.d_model}×{shape.d_ff}, {shape.dtype}, {direction}, {source}: {said}")
    return lines


def shape_of(mlp: RoutedMLP, dtype: torch.dtype, training: bool) -> Shape:
    """The properties of a routed MLP's calls for which a calibration holds."""
    f, d = mlp.W_in.shape
    name, device = str(dtype).removeprefix("torch."), mlp.W_in.device.type
    return Shape(d, f, mlp.config.n_pathways, mlp.W_gate is not None, name, device, training)
