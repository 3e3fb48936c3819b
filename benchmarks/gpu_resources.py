"""Compiles every shipped Triton configuration for chips that you need not have, and prints what each needs.

`python -m benchmarks.gpu_resources` prints a table of maxima (with --json, each variant by itself): registers, spills,
shared memory, the programs that a multiprocessor runs at once, and whether tensor-core instructions and 16-byte loads
were generated. It fails if a variant spills, does not fit or lacks them. It does not show how fast they are. It needs
no GPU.
"""

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from slms.kernels.backends import GPU_PATHWAYS, GPU_TOKENS
from slms.kernels.gpu import decode, gradients, grouped, routes, sparse, step, tiles
from slms.kernels.router import SOFTMAX, UNIT

CHIPS = (80, 90)
PATHWAYS = (16, 32, 64, GPU_PATHWAYS)
VERSION = "3.9."  # of Triton, from whose registers `Tile.resident` was read; more programs than fit only wait
# What these chips have: registers and threads of a multiprocessor, shared bytes of a program, of a multiprocessor.
REGISTERS, THREADS = 65536, 2048
SHARED = {80: (163 * 1024, 164 * 1024), 90: (227 * 1024, 228 * 1024)}
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
WIDE = r"ld\.global[.\w]*\.v4\.b32|ld\.global[.\w]*\.v2\.b64|cp\.async[.\w]*\.shared\.global[^;]*, 0x10"
NARROW = r"ld\.global[.\w]*(?<!v2)(?<!v4)\.b(16)|cp\.async[.\w]*\.shared\.global[^;]*, 0x([48])\b"
# As at run time: tensors are aligned, and d_model and the pathway size divide by 16.
MULTIPLES = ("d", "M", "r", "c", "LENGTH", "width", "H")


PRODUCTS = ("up", "down", "hidden_gradients", "weight_gradient")
READERS = ("slices", "combine", "dot_rows", "sum_rows", "features")


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


class Resources(NamedTuple):
    """What the assembler reports for one variant on one chip."""

    name: str
    gated: bool
    activation: str
    odd: bool
    chip: int
    registers: int
    spills: int
    """bytes of local memory per thread: spilled registers and stack"""
    shared: int
    """bytes of shared memory per program"""
    threads: int
    programs: int
    """programs that one multiprocessor runs at once"""
    resident: int
    """programs at once that the launch counts on; 0 if it counts on none"""
    tensor_core: str
    """"wgmma", "mma" or "" for none"""
    wide_loads: bool
    """whether over three quarters of the bytes are loaded 16 at a time; numbers of tokens and biases are not"""


def _pointers(names: str, element: str) -> dict[str, str]:
    return {name: f"*{element}" for name in names.split()}


def variants(quick: bool) -> Iterator[Variant]:
    """Every kernel at every configuration of `kernels.gpu.tiles`, as the launches start them.

    quick: leave out float16, whose machine code differs from bfloat16's only in the names of types, all activations but
    GELU's approximation, ungated MLPs except in bfloat16, odd sizes and TF32.
    """
    metadata = _pointers("token pair starts tile_pathway tile_row n_tiles offsets counts before", "i32")
    metadata |= _pointers("chosen keep", "u8")
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
        data |= _pointers("left right out b bias ramp rows y v b_out mean_out", short)
        data |= metadata | _pointers("gates d_gates partial inputs", "fp32")
        yield Variant(f"features {short}", step.features, data | {"out": "*fp32"}, tiles.FEATURES, 4, 3)
        for p, (kind, inputs) in itertools.product(PATHWAYS, ((UNIT, short), (SOFTMAX, "fp32"))):
            router = {"KIND": kind, "RAMPED": kind == SOFTMAX, **tiles.pick_sizes(p)}
            warps = router.pop("num_warps")
            # A linear router's inputs are the tokens, others' are features.
            yield Variant(f"pick {short} {p} pathways", step.pick, data | {"inputs": f"*{inputs}"}, router, warps, 3)
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
        for gated, activation, odd, precision in _settings(short, quick):
            product = {"ALIGNED": not odd, "PRECISION": precision, "UPCAST": False}
            common = product | {"ACT": activation, "BIASED": True, "GATED": gated, "GATE_BIASED": gated}
            label = short if precision == "ieee" else precision
            yield from _grouped(dtype, label, data, product, common, activation == "gelu_tanh", odd)
            for size in ("one", "few"):
                slice_tile = tiles.DECODE_TILES[family, size]
                constants = common | {"ONE": size == "one", "N": 1 if size == "one" else GPU_TOKENS}
                constants |= {"ROWS": slice_tile.rows, "INNER": slice_tile.inner}
                yield Variant(f"slices {label} {size}", decode.slices, data, constants, slice_tile.warps, 3, None, odd)


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


def compile_variant(variant: Variant, chip: int) -> Resources:
    """Compile to machine code for this chip. Raises what Triton or the assembler raise if it does not fit."""
    signature, attributes = {}, {}
    for index, name in enumerate(variant.kernel.arg_names):
        signature[name] = "constexpr" if name in variant.constants else variant.types.get(name, "i32")
        if signature[name].startswith("*") or (name in MULTIPLES and not variant.odd):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(variant.kernel, signature, variant.constants, attributes)
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", chip, 32), options=options)
    ptx = compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(count) for name, count in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
    threads, shared, registers = 32 * variant.warps, compiled.metadata.shared, usage["REG"]
    fit = (REGISTERS // (-(-registers // 8) * 8 * threads), THREADS // threads, SHARED[chip][1] // (shared + 1024))
    narrow = sum(int(bits or 0) // 8 + int(count or 0) for bits, count in re.findall(NARROW, ptx))  # bytes
    return Resources(
        name=variant.name,
        gated=bool(variant.constants.get("GATED")),
        activation=str(variant.constants.get("ACT", "")),
        odd=variant.odd,
        chip=chip,
        registers=registers,
        spills=usage["STACK"] + usage["LOCAL"],
        shared=shared,
        threads=threads,
        programs=min(fit),
        resident=variant.resident[CHIPS.index(chip)] if variant.resident else 0,
        tensor_core="wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else "",
        wide_loads=16 * len(re.findall(WIDE, ptx)) > 3 * narrow,
    )


def fault(row: Resources) -> str | None:
    """What is wrong with a variant: it spills, does not fit, or lacks the instructions that it is meant to use."""
    kernel, *rest = row.name.split()
    half, better = not {"fp32", "tf32"} & set(rest), row.chip == 90 and "large" in rest
    if row.spills:
        return f"{row.spills} bytes are spilled"
    counted = row.resident if triton.__version__.startswith(VERSION) else 0
    if not max(counted, 1) <= row.programs or row.shared > SHARED[row.chip][0]:
        return f"a multiprocessor takes {row.programs} programs with {row.shared} shared bytes"
    if half and kernel in PRODUCTS and row.tensor_core not in (("wgmma",) if better else ("mma", "wgmma")):
        return "the tensor cores are not used as they could be"
    if kernel in (*PRODUCTS, *READERS) and not row.odd and "tf32" not in rest and not row.wide_loads:
        return "operands are not loaded 16 bytes at a time"
    return None


def summary(table: Sequence[Resources]) -> Iterator[str]:
    """Yield a line per kernel and size: the most that any variant needs, on sm_80 / on sm_90; 16-bit types together."""
    columns = "kernel|variants|registers × threads|spilled bytes|shared bytes|programs|tensor cores|16-byte loads"
    yield "| " + columns.replace("|", " | ") + " |"
    yield "|---" * 8 + "|"

    def name(row: Resources) -> str:
        short = row.name.replace("bf16", "16-bit").replace("fp16", "16-bit")
        return short + ", odd sizes" * (row.odd and not short.endswith("odd"))

    for kernel in dict.fromkeys(map(name, table)):
        chips = [[row for row in table if (name(row), row.chip) == (kernel, chip)] for chip in CHIPS]
        cells = [
            (
                f"{max(row.registers for row in rows)} × {rows[0].threads}",
                max(row.spills for row in rows),
                max(row.shared for row in rows),
                min(row.programs for row in rows),
                ", ".join(sorted({row.tensor_core or "–" for row in rows})),
                "yes" if all(row.wide_loads for row in rows) else "no",
            )
            for rows in chips
        ]
        both = [str(a) if a == b else f"{a} / {b}" for a, b in zip(*cells, strict=True)]
        yield "| " + " | ".join([kernel, str(len(chips[0])), *both]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    parser.add_argument("--quick", action="store_true", help="the part that the tests check, see `variants`")
    arguments = parser.parse_args()
    table = [compile_variant(variant, chip) for variant in variants(arguments.quick) for chip in CHIPS]
    if arguments.json:
        json.dump([row._asdict() for row in table], sys.stdout)
    else:
        print(*summary(table), sep="\n")
    if wrong := [f"{row}: {why}" for row in table if (why := fault(row))]:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
