"""Runs one part of what a GPU must show, and reports all of them: `benchmarks/gpu.sh` calls it.

parity    every Triton kernel against its reference, output and gradients
gate      gate-selected neurons beside the dense MLP, eager and compiled: decode, prompts, forward and backward
heads     attentions with routed heads beside the dense ones: prompts, forward and backward, decoding
models    a routed SmolLM2-135M beside the dense one: eager, one CUDA graph, compiled
training  some steps of it in bfloat16, dense and routed
rivals    pathways beside ScatterMoE and PyTorch's `grouped_mm`

Each part appends its rows to PART.jsonl as it makes them, so that nothing is lost if it is stopped. The report merges
them into results.json and results.md.
"""

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.gpu_setting import Row, Setting
from slms.kernels.costs import machine

PACKAGES = ("torch", "triton", "transformers", "numba", "scattermoe")


def _parity(setting: Setting) -> Iterator[Row]:
    from benchmarks.gpu_parity import parity_rows  # Triton exists for Linux alone

    return parity_rows(setting)


def _gate(setting: Setting) -> Iterator[Row]:
    from benchmarks.gpu_gate import gate_rows

    return gate_rows(setting)


def _heads(setting: Setting) -> Iterator[Row]:
    from benchmarks.gpu_heads import head_rows

    return head_rows(setting)


def _rivals(setting: Setting) -> Iterator[Row]:
    from benchmarks.gpu_gate import rival_rows

    return rival_rows(setting)


def _models(setting: Setting) -> Iterator[Row]:
    from benchmarks.gpu_models import model_rows  # transformers takes seconds to import

    return model_rows(setting)


def _training(setting: Setting) -> Iterator[Row]:
    from benchmarks.gpu_models import training_rows

    return training_rows(setting)


PARTS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "parity": _parity,
    "gate": _gate,
    "heads": _heads,
    "models": _models,
    "training": _training,
    "rivals": _rivals,
}


def environment(device: str) -> dict[str, object]:
    """Device, versions and commit of what is measured."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "present" if importlib.util.find_spec(name) else "absent"
    found: dict[str, object] = {"device": machine(device), "versions": versions, "cuda": torch.version.cuda}
    asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    found["commit"] = asked.stdout.strip() or "unknown"
    if device == "cuda":
        chip = torch.cuda.get_device_properties(0)
        found |= {"capability": f"{chip.major}.{chip.minor}", "memory_gib": round(chip.total_memory / 2**30, 1)}
    return found


def begin(out: Path, device: str) -> None:
    """Prepare an output directory, empty of earlier results of this command alone."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("status.txt", "results.json", "results.md", *(f"{part}.jsonl" for part in PARTS)):
        (out / name).unlink(missing_ok=True)
    (out / "environment.json").write_text(json.dumps(environment(device)), encoding="utf-8")


def run(part: str, out: Path, setting: Setting) -> int:
    """Run one part; returns 1 if a kernel computed something wrong."""
    wrong = 0
    with (out / f"{part}.jsonl").open("a", encoding="utf-8") as file:
        for row in PARTS[part](setting):
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(row, flush=True)
            wrong |= row.get("ok") is False
    return int(wrong)


def report(out: Path, device: str) -> None:
    """Write results.json and results.md from what the parts left."""
    found = json.loads((out / "environment.json").read_text(encoding="utf-8"))
    status_file = out / "status.txt"
    ended = (
        [line.split() for line in status_file.read_text(encoding="utf-8").splitlines()] if status_file.is_file() else []
    )
    states = {name: (int(limit), int(took), int(status)) for name, limit, took, status in ended}
    parts: dict[str, dict[str, object]] = {}
    lines = [
        "# GPU results",
        "",
        f"`benchmarks/gpu.sh {out.name} --device {device}`",
        "",
        f"{found['device']}; commit ",
    ]
    lines[-1] += f"{found['commit']}; " + ", ".join(f"{name} {what}" for name, what in found["versions"].items())
    if device == "cpu":
        lines += ["", "A dry run on tiny shapes: it shows that the command works, and no speed."]
    for part in PARTS:
        limit, took, status = states.get(part, (0, 0, -1))
        said = {0: "done", 124: "stopped at its limit", 137: "stopped at its limit", -1: "not run"}.get(
            status, "failed"
        )
        file = out / f"{part}.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
        left, made = [row for row in rows if "left_out" in row], [row for row in rows if "left_out" not in row]
        command = f"python -m benchmarks.gpu {part} --out {out.name} --device {device}"
        parts[part] = {
            "command": command,
            "state": said,
            "seconds": took,
            "limit": limit,
            "rows": made,
            "left_out": left,
        }
        lines += ["", f"## {part}: {said}, {took} of {limit} s", "", f"`{command}`"]
        lines += ["", *_table(made)] if made else []
        lines += ["", *(f"- left out: {row['left_out']} ({row['why']})" for row in left)] if left else []
    (out / "results.json").write_text(json.dumps(found | {"parts": parts}, indent=1), encoding="utf-8")
    (out / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{out / 'results.md'} and results.json")


def _table(rows: list[Row]) -> list[str]:
    """Rows as Markdown; a row without some column has an empty cell."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[str(row.get(name, "")).replace("|", "/") for name in columns] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in (columns, ["---"] * len(columns), *cells)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["begin", *PARTS, "report"])
    parser.add_argument("--out", type=Path, required=True, help="the directory of results")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="cpu: a dry run on tiny shapes")
    parser.add_argument("--seconds", type=float, default=60.0, help="after so long nothing more is begun")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda; no CUDA device is available (--device cpu makes a dry run)")
    if arguments.part != "begin" and not (arguments.out / "environment.json").is_file():
        parser.error(f"--out is {arguments.out}; it has no environment.json, which the part `begin` writes")
    torch.manual_seed(0)
    if arguments.part == "begin":
        begin(arguments.out, arguments.device)
    elif arguments.part == "report":
        report(arguments.out, arguments.device)
    else:
        setting = Setting(arguments.device, time.monotonic() + arguments.seconds)
        sys.exit(run(arguments.part, arguments.out, setting))


if __name__ == "__main__":
    main()
