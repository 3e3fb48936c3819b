"""Compiles every shipped Triton configuration for chips that you need not have, and prints what each needs.

`python -m benchmarks.gpu_resources` prints a table of maxima (with --json, each variant by itself): registers, spills,
shared memory, the programs that a multiprocessor runs at once, and whether tensor-core instructions and 16-byte loads
were generated. It fails if a variant spills, does not fit or lacks them. It does not show how fast they are. It needs
no GPU.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.gpu_variants import Variant, variants

CHIPS = (80, 90)
VERSION = "3.9."  # of Triton, from whose registers `Tile.resident` was read; more programs than fit only wait
# What these chips have: registers and threads of a multiprocessor, shared bytes of a program, of a multiprocessor.
REGISTERS, THREADS = 65536, 2048
SHARED = {80: (163 * 1024, 164 * 1024), 90: (227 * 1024, 228 * 1024)}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
WIDE = r"ld\.global[.\w]*\.v4\.b32|ld\.global[.\w]*\.v2\.b64|cp\.async[.\w]*\.shared\.global[^;]*, 0x10"
NARROW = r"ld\.global[.\w]*(?<!v2)(?<!v4)\.b(16)|cp\.async[.\w]*\.shared\.global[^;]*, 0x([48])\b"
# As at run time: tensors are aligned, and d_model and the pathway size divide by 16.
MULTIPLES = ("d", "M", "r", "c", "f", "U", "LENGTH", "width", "H", "E")

PRODUCTS = ("up", "down", "hidden_gradients", "weight_gradient", "masked_up")
READERS = (
    "slices",
    "combine",
    "dot_rows",
    "sum_rows",
    "features",
    "chosen_rows",
    "score",
    "few_queries",
    "few_outputs",
)
ELEMENTWISE = ("masked_product", "product_gradients")


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
    if kernel in (*PRODUCTS, *READERS, *ELEMENTWISE) and not row.odd and "tf32" not in rest and not row.wide_loads:
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
