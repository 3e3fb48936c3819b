"""Compiles every shipped Triton configuration ahead of time for chips that are not at hand, and says what each takes.

`python -m kernels.gpu.aot` prints a table (JSON with --json): registers, spills, shared memory, and whether tensor-core
instructions and 16-byte loads were generated. It shows that the kernels fit, not how fast they are. Needs no GPU.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.gpu import decode, grouped, routes, tiles

CHIPS = (80, 90)
# What a program may take on these chips: registers of a thread, shared bytes of a block.
REGISTERS = 255
SHARED = {80: 163 * 1024, 90: 227 * 1024}
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
WIDE = r"ld\.global[.\w]*\.v4\.b32|ld\.global[.\w]*\.v2\.b64|cp\.async[.\w]*\.shared\.global[^;]*, 0x10"
ACTIVATION = {"ACT": "gelu_tanh", "BIASED": True}


class Variant(NamedTuple):
    """One kernel with one configuration."""

    name: str
    kernel: triton.JITFunction
    types: Mapping[str, str]
    """pointer and scalar types of its arguments; "i32" where not named"""
    constants: Mapping[str, object]
    warps: int
    stages: int
    products: bool
    """whether it multiplies matrices"""


class Resources(NamedTuple):
    """What the assembler reports for one variant on one chip."""

    name: str
    chip: int
    registers: int
    spills: int
    """bytes of local memory per thread: spilled registers and stack"""
    shared: int
    """bytes of shared memory per program"""
    threads: int
    tensor_core: str
    """"wgmma", "mma" or "" for none"""
    wide_loads: bool
    """whether operands are loaded 16 bytes at a time"""


def _pointers(names: str, element: str) -> dict[str, str]:
    return {name: f"*{element}" for name in names.split()}


def variants(dtypes=tuple(TYPES), gated=(False, True)) -> Iterator[Variant]:
    """Every kernel at every configuration of `kernels.gpu.tiles`, as `kernels.gpu.launch` starts them."""
    metadata = _pointers("token pair starts tile_pathway tile_row offsets counts before", "i32")
    metadata |= _pointers("chosen", "u8")
    sizes = {"P": 16, "PP": 16}
    yield Variant("count", routes._count, metadata, sizes | {"TOKENS": routes.TOKENS}, 4, 3, False)
    yield Variant("scan", routes._scan, metadata, sizes | {"ROWS": 128, "STEP": 64}, 4, 3, False)
    yield Variant("place", routes._place, metadata, sizes | {"TOKENS": routes.TOKENS}, 4, 3, False)
    for dtype in dtypes:
        short = TYPES[dtype]
        data = _pointers("x grad W W_in b_in W_gate b_gate W_out hidden hidden_gate du dv", short)
        data |= _pointers("left right out bias rows y", short)
        data |= metadata | _pointers("gates d_gates partial", "fp32")
        math = {"PRECISION": "ieee", "UPCAST": False}
        family = tiles.family(dtype)
        columns = {"P": 16, "COLS": tiles.COMBINE_COLS, "UPCAST": False}
        yield Variant(f"combine {short}", grouped.combine, data, columns, 4, 3, False)
        added = data | {"chosen": "*u8"}
        yield Variant(f"add_slices {short}", decode.add_slices, added, columns, 4, 3, False)
        for gate in gated:
            shape = "gated" if gate else "plain"
            common = math | ACTIVATION | {"GATED": gate, "GATE_BIASED": gate}
            for size in ("large", "small"):
                shipped = tiles.TILES[family, size]
                for name, kernel, tile, constants in (
                    ("up", grouped.up, shipped.up, common),
                    ("down", grouped.down, shipped.down, math | {"GATED": gate}),
                    ("hidden_gradients", grouped.hidden_gradients, shipped.hidden, common),
                    ("weight_gradient", grouped.weight_gradient, shipped.weight, math | {"BIASED": True}),
                ):
                    settings = tile.launch()
                    warps, stages = settings.pop("num_warps"), settings.pop("num_stages")
                    label = f"{name} {short} {shape} {size}"
                    yield Variant(label, kernel, data, constants | settings, warps, stages, True)
            for size in ("one", "few"):
                slice_tile = tiles.DECODE_TILES[family, size]
                constants = common | {"ONE": size == "one", "N": 1 if size == "one" else 16}
                constants |= {"ROWS": slice_tile.rows, "INNER": slice_tile.inner}
                label = f"slices {short} {shape} {size}"
                yield Variant(label, decode.slices, data, constants, slice_tile.warps, 3, size == "few")


def compile_variant(variant: Variant, chip: int) -> Resources:
    """Compiles to machine code for this chip. Raises what Triton or the assembler raise when it does not fit."""
    signature, attributes = {}, {}
    for index, name in enumerate(variant.kernel.arg_names):
        signature[name] = "constexpr" if name in variant.constants else variant.types.get(name, "i32")
        # As at run time: tensors are aligned, and d_model and the pathway size divide by 16.
        if signature[name].startswith("*") or name in ("d", "M"):
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
    return Resources(
        name=variant.name,
        chip=chip,
        registers=usage["REG"],
        spills=usage["STACK"] + usage["LOCAL"],
        shared=compiled.metadata.shared,
        threads=32 * variant.warps,
        tensor_core="wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else "",
        wide_loads=bool(re.search(WIDE, ptx)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    parser.add_argument("--quick", action="store_true", help="gated MLPs only, which take the most")
    arguments = parser.parse_args()
    wanted = variants(gated=(True,)) if arguments.quick else variants()
    table = [compile_variant(variant, chip) for variant in wanted for chip in CHIPS]
    if arguments.json:
        json.dump([row._asdict() for row in table], sys.stdout)
        return
    print("| kernel | chip | registers × threads | spilled bytes | shared bytes | tensor cores | 16-byte loads |")
    print("|---|---|---|---|---|---|---|")
    for r in table:
        wide = "yes" if r.wide_loads else "no"
        cells = (r.name, f"sm_{r.chip}", f"{r.registers} × {r.threads}", r.spills, r.shared, r.tensor_core or "–", wide)
        print("| " + " | ".join(str(cell) for cell in cells) + " |")


if __name__ == "__main__":
    main()
