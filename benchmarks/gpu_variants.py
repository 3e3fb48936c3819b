"""Every Triton kernel at every shipped configuration, as its launch starts it, for `benchmarks.gpu_resources`."""

import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
import triton

from slms.kernels.backends import GPU_PATHWAYS, GPU_TOKENS, GPU_UNITS
from slms.kernels.gpu import (
    choice,
    decode,
    gate_many,
    gradients,
    grouped,
    heads,
    masked,
    routes,
    rows,
    sparse,
    step,
    tiles,
)
from slms.kernels.router import SOFTMAX, UNIT

PATHWAYS = (16, 32, 64, GPU_PATHWAYS)
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
# Units to choose from, in registers at once: single neurons of SmolLM2-135M, of Llama 3.2 1B, and the most possible.
UNITS = (1536, 8192, GPU_UNITS)

HEAD_SIZES = (64, 128)


class Variant(NamedTuple):
    """One kernel with one configuration."""

    name: str
    """kernel, arithmetic, size of its tiles"""
    kernel: triton.JITFunction
    types: Mapping[str, str]
    """pointer and scalar types of its arguments; "i32" where not named"""
    constants: Mapping[str, object]
    warps: int
    stages: int
    resident: tuple[int, int] | None = None
    """programs of a persistent kernel that one multiprocessor of each chip must take"""
    odd: bool = False
    """sizes that do not divide by 16"""


def _pointers(names: str, element: str) -> dict[str, str]:
    return {name: f"*{element}" for name in names.split()}


def variants(quick: bool) -> Iterator[Variant]:
    """Every kernel at every configuration of `kernels.gpu.tiles`, as the launches start them.

    quick: leave out float16, whose machine code differs from bfloat16's only in the names of types, all activations but
    GELU's approximation, ungated MLPs except in bfloat16, odd sizes, TF32, and of gate-selected neurons some sizes.
    """
    metadata = _pointers("token pair starts tile_pathway tile_row n_tiles offsets counts before", "i32")
    metadata |= _pointers("index count unit", "i32") | _pointers("chosen keep kept used", "u8")
    for p in PATHWAYS:
        sizes, label = tiles.routes_sizes(p), f"{p} pathways"
        yield Variant(f"count {label}", routes._count, metadata, sizes, 4, 3)
        yield Variant(f"scan {label}", routes._scan, metadata, sizes | {"ROWS": 128}, 4, 3)
        yield Variant(f"place {label}", routes._place, metadata, sizes, 4, 3)
    for dtype, short in TYPES.items():
        if quick and dtype == torch.float16:
            continue
        family = tiles.family(dtype)
        data = _pointers("x grad W W_in b_in W_gate b_gate W_out hidden hidden_gate du dv", short)
        data |= _pointers("left right out b bias ramp rows y v b_out mean_out gate up d_gate d_up q o", short)
        data |= metadata | _pointers("gates d_gates partial inputs scale scores whole_above", "fp32")
        data |= _pointers("least out_scale weights", "fp32")
        for relu in (True, False):
            layer = {"RELU": relu, **tiles.FEATURES}
            yield Variant(f"features {short}", step.features, data | {"out": "*fp32"}, layer, 4, 3)
        for p, (kind, inputs) in itertools.product(PATHWAYS, ((UNIT, short), (SOFTMAX, "fp32"))):
            router = {"KIND": kind, "RAMPED": kind == SOFTMAX, **tiles.pick_sizes(p)}
            warps = router.pop("num_warps")
            # A linear router's inputs are the tokens, others' are features.
            yield Variant(f"pick {short} {p} pathways", step.pick, data | {"inputs": f"*{inputs}"}, router, warps, 3)
        for p, kind in itertools.product(UNITS[-1:] if quick else UNITS, (UNIT, SOFTMAX)):
            router = {"KIND": kind, "RAMPED": kind == SOFTMAX, **tiles.select_sizes(p), **tiles.block_sizes(p)}
            warps = router.pop("num_warps")
            yield Variant(f"pick_many {short} {p} pathways", step.pick_many, data, router, warps, 3)
        columns = {
            "P": 16,
            "COLS": tiles.COMBINE_COLS,
            "UPCAST": False,
        }  # over P, as in add_slices, there is but a loop
        yield Variant(f"combine {short}", grouped.combine, data, columns, tiles.combine_warps(dtype), 3)
        for end in (False, True):
            added = columns | tiles.ADD | {"BIASED": end, "MEANS": end}
            yield Variant(f"add_slices {short}{' and means' * end}", decode.add_slices, data, added, 4, 3)
        math = {"PRECISION": "ieee", "UPCAST": False}
        for size, odd in itertools.product(("one", "few"), (False,) if quick else (False, True)):
            count = {"ONE": size == "one", "N": 1 if size == "one" else GPU_TOKENS}
            row_tile, sum_tile = (shipped[family, size] for shipped in (tiles.DECODE_TILES, tiles.SUMS_TILES))
            constants = math | count | {"BIASED": True, "ROWS": row_tile.rows, "INNER": row_tile.inner}
            yield Variant(f"dot_rows {short} {size}", sparse.dot_rows, data, constants, row_tile.warps, 3, None, odd)
            constants = math | count | {"ROWS": sum_tile.rows, "COLS": sum_tile.inner}
            yield Variant(f"sum_rows {short} {size}", sparse.sum_rows, data, constants, sum_tile.warps, 3, None, odd)
        yield from _heads(short, family, data, quick)
        for gated, activation, odd, precision in _settings(short, quick):
            product = {"ALIGNED": not odd, "PRECISION": precision, "UPCAST": False}
            common = product | {"ACT": activation, "BIASED": True, "GATED": gated, "GATE_BIASED": gated}
            label = short if precision == "ieee" else precision
            if gated:
                yield from _gates(dtype, label, data, common, odd, quick)
            yield from _grouped(dtype, label, data, product, common, activation == "gelu_tanh", odd)
            yield from _small(dtype, label, data, common, odd, quick)
            for size in ("one", "few"):
                slice_tile = tiles.DECODE_TILES[family, size]
                constants = common | {"ONE": size == "one", "N": 1 if size == "one" else GPU_TOKENS}
                constants |= {"ROWS": slice_tile.rows, "INNER": slice_tile.inner}
                yield Variant(f"slices {label} {size}", decode.slices, data, constants, slice_tile.warps, 3, None, odd)


def _heads(short: str, family: str, data: Mapping[str, str], quick: bool) -> Iterator[Variant]:
    """The kernels of attention heads: projections of few tokens, and the grouped product without an activation."""
    math = {"PRECISION": "ieee", "UPCAST": False}
    for size, odd in itertools.product(("one", "few"), (False,) if quick else (False, True)):
        tile = tiles.DECODE_TILES[family, size]
        constants = math | {"ONE": size == "one", "N": 1 if size == "one" else GPU_TOKENS, "HH": 32, "ROWS": tile.rows}
        queries = constants | {"BIASED": True, "INNER": tile.inner}
        yield Variant(f"few_queries {short} {size}", heads.few_queries, data, queries, tile.warps, 3, None, odd)
        for e in HEAD_SIZES:
            name = f"few_outputs {short} {size} {e}"
            yield Variant(name, heads.few_outputs, data, constants | {"EE": e}, tile.warps, 3, None, odd)
    for size in ("large", "small") if quick else ("large", "small", "odd"):
        shipped = tiles.TILES[family, size].up
        settings = shipped.launch()
        warps, stages = settings.pop("num_warps"), settings.pop("num_stages")
        constants = math | settings | {"ACT": "none", "BIASED": True, "GATED": False, "GATE_BIASED": False}
        constants |= {"ALIGNED": size != "odd"}
        yield Variant(f"up {short} {size}", grouped.up, data, constants, warps, stages, shipped.resident, size == "odd")


def _settings(short: str, quick: bool) -> Iterator[tuple[bool, str, bool, str]]:
    """What a type is compiled for, one departure from the usual at a time: gate, activation, odd sizes, precision."""
    for gated in (True, False):
        if quick and not gated and short != "bf16":
            continue
        yield gated, "gelu_tanh", False, "ieee"
        if quick:
            continue
        for activation in ("gelu", "relu", "silu"):
            yield gated, activation, False, "ieee"
        yield gated, "gelu_tanh", True, "ieee"
        if short == "fp32":
            yield gated, "gelu_tanh", False, "tf32"


def _grouped(dtype, label, data, product, common, products_too, odd) -> Iterator[Variant]:
    """The grouped kernels in all sizes of tiles; down and weight_gradient, which know no activation, if asked for."""
    gated = common["GATED"]
    for size in ("odd",) if odd else ("large", "small"):
        shipped = tiles.TILES[tiles.family(dtype), size]
        kernels = [
            ("up", grouped.up, shipped.gated_up if gated else shipped.up, common),
            ("hidden_gradients", gradients.hidden_gradients, shipped.gated_hidden if gated else shipped.hidden, common),
        ]
        if products_too:
            kernels.append(
                ("down", grouped.down, shipped.gated_down if gated else shipped.down, product | {"GATED": gated})
            )
        if products_too and gated:
            kernels.append(("down", grouped.down, shipped.down, product | {"GATED": False}))
            biased = product | {"BIASED": True}
            kernels.append(("weight_gradient", gradients.weight_gradient, shipped.weight, biased))
        for name, kernel, tile, constants in kernels:
            settings = tile.launch()
            warps, stages = settings.pop("num_warps"), settings.pop("num_stages")
            resident = None if name == "weight_gradient" else tile.resident
            yield Variant(f"{name} {label} {size}", kernel, data, constants | settings, warps, stages, resident, odd)


def _small(dtype, label, data, common, odd, quick) -> Iterator[Variant]:
    """The kernels of many small pathways: rows for few tokens, a pass between products for many."""
    names = ("ACT", "BIASED", "GATE_BIASED", "PRECISION", "UPCAST")
    rules = {name: common[name] for name in names} | {"GATE": "rows" if common["GATED"] else "none"}
    for n, f in ((1, 1024), (1, 1536), (1, 4097), (2, 1536)):
        launch = tiles.gate_tile(dtype, n, f).launch(n)
        warps, size = launch.pop("num_warps"), f"one × {launch['ROWS']}" if n == 1 else "few"
        constants = {**rules, **launch, "SINGLE": False, "LISTED": False}
        yield Variant(f"chosen_rows {label} pathways {size}", rows.chosen_rows, data, constants, warps, 3, None, odd)
    if common["PRECISION"] == "ieee":
        for longest in (1,) if quick else (1, 16, 64):
            flags = {"SINGLE": longest == 1, "UPCAST": False, **tiles.weigh_sizes(longest)}
            warps = flags.pop("num_warps")
            constants = flags | {name: common[name] for name in ("ACT", "GATED", "ALIGNED")}
            if longest == 1:  # as a launch makes of every argument that is 1
                constants["LONGEST"] = 1
            for kernel in (masked.weigh, masked.weigh_gradients):
                yield Variant(f"{kernel.__name__} {label} {longest}", kernel, data, constants, warps, 3, None, odd)


def _gates(dtype, label, data, common, odd, quick) -> Iterator[Variant]:
    """The kernels of gate-selected neurons; the choice, which is not specialized for odd sizes, once a type."""
    settings = {name: common[name] for name in ("ACT", "BIASED", "PRECISION", "UPCAST")}
    whole = {"SINGLE": True, **settings}
    act = {"ACT": common["ACT"]}
    if not odd and common["PRECISION"] == "ieee":
        for p, kind in itertools.product(UNITS[-1:] if quick else UNITS, ("neurons", "units", "thresholds", "scores")):
            scored, held = kind in ("units", "scores"), kind == "thresholds"
            sizes = {"SCORED": scored, "SIGNED": kind == "scores", "WHOLE": kind != "scores", "HELD": held}
            sizes |= {"LISTED": not scored, **act, **tiles.select_sizes(p)}
            warps, values = sizes.pop("num_warps"), "*fp32" if scored else data["gate"]
            yield Variant(f"select {label} {p} {kind}", choice.select, data | {"values": values}, sizes, warps, 3)
        for p, held in itertools.product(UNITS[-1:] if quick else UNITS, (False, True)):
            sizes = {"HELD": held, "UPCAST": False, **act, **tiles.select_sizes(p), **tiles.block_sizes(p)}
            warps = sizes.pop("num_warps")
            yield Variant(f"keep {label} {p}{' thresholds' * held}", choice.keep, data, sizes, warps, 3)
        for longest in (16,) if quick else (16, 256):
            yield Variant(
                f"score {label} {longest}",
                choice.score,
                data,
                act | {"ALIGNED": True} | tiles.score_sizes(longest),
                4,
                3,
            )
        yield Variant(f"add_used {label}", rows.add_used, data, {**tiles.ADD, "UPCAST": False}, 4, 3)
        for kernel in (gate_many.masked_product, gate_many.product_gradients):
            cells = {"SINGLE": True, "UPCAST": False, **act, **tiles.CELLS}
            yield Variant(f"{kernel.__name__} {label}", kernel, data, cells, 4, 3)
    for n, chosen in ((1, 1024), (1, 4096), (1, 4097), (2, 1024)):
        launch = tiles.gate_tile(dtype, n, chosen).launch(n)
        warps, size = launch.pop("num_warps"), f"one × {launch['ROWS']}" if n == 1 else "few"
        for single in (True,) if quick else (True, False):
            constants = {**whole, **launch, "SINGLE": single, "LISTED": single and n == 1}
            constants |= {"GATE": "given", "GATE_BIASED": False}
            yield Variant(f"chosen_rows {label} {size}", rows.chosen_rows, data, constants, warps, 3, None, odd)
    for size in ("odd",) if odd else ("large", "small"):
        launch = tiles.masked_tile(dtype, 512 if size == "large" else 17, odd).launch()
        warps, stages = launch.pop("num_warps"), launch.pop("num_stages")
        constants = {**whole, **launch}
        yield Variant(f"masked_up {label} {size}", gate_many.masked_up, data, constants, warps, stages, None, odd)
