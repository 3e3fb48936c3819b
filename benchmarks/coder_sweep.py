"""Trains coders at a grid of learning rates, chooses the rate on validation documents, and repeats it with other seeds.

Test documents are not read. Shapes: n tokens, d width of the site, s latents.
"""

import importlib.util
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.coder_data import read_about, read_rows
from benchmarks.coder_rivals import LIBRARIES, PACKAGES, Kind, Task
from slms.sae.base import Coder
from slms.sae.coders import BatchTopK
from slms.sae.export import Provenance, save

Library = Literal["ours", "saelens", "dictionary_learning"]
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
ROWS = "rows.jsonl"
MOST_BEYOND = 3  # rates tried beyond the grid


def sweep(
    acts: str,
    libraries: tuple[Library, ...] = ("ours", "saelens", "dictionary_learning"),
    kinds: tuple[Kind, ...] = ("topk", "batch_topk"),
    lrs: tuple[float, ...] = RATES,
    seeds: tuple[int, ...] = (0, 1, 2),
    d_sae: int = 1024,
    k: int = 6,
    batch_size: int = 512,
    steps: int = 500,
) -> None:
    """Train each library's coders at every rate with the first seed, and at the best rate with the others.

    The best rate has the least FVU on the validation documents. If it is the lowest or the highest, the grid is
    extended. Coders go to ACTS/coders/, and a JSON line for each to ACTS/rows.jsonl; those that are there are not
    trained again.

    Args:
        acts: a directory made by `dump`.
        libraries: the libraries that train.
        kinds: kinds of coders.
        lrs: peak learning rates of the grid.
        seeds: seeds of weights and order.
        d_sae: number of latents.
        k: latents for each token.
        batch_size: tokens in a step.
        steps: training steps.

    Raises:
        ValueError: a library is not installed, a batch is larger than the data, the grid has a single rate, or the
            directory holds coders of another setting.
    """
    torch.set_num_threads(1)
    for library in libraries:
        if library != "ours" and importlib.util.find_spec(PACKAGES[library]) is None:
            raise ValueError(f"--libraries {library}: {PACKAGES[library]} is not installed")
    if len(set(lrs)) < 2 or min(lrs) <= 0:
        raise ValueError(f"--lrs {list(lrs)}: a grid has at least two rates, all above 0")
    about, train = read_about(acts), read_rows(acts, "train").x
    if not 0 < batch_size <= len(train):
        raise ValueError(f"--batch_size {batch_size}: it must be between 1 and the {len(train)} tokens of {acts}")
    setting = {"d": train.shape[1], "d_sae": d_sae, "k": k, "batch_size": batch_size, "steps": steps}
    known = {run_name(row): row for row in read_lines(acts)}
    if other := next((row for row in known.values() if any(row[name] != setting[name] for name in setting)), None):
        held = ", ".join(f"{name} {other[name]}" for name in setting)
        raise ValueError(f"{acts}: holds coders with {held}; another setting needs another directory")
    valid = torch.from_numpy(read_rows(acts, "valid").at(slice(None)).x)
    provenance = Provenance(about["model"], about["site"], dataset_path=about["corpus"])

    def error(library: Library, kind: Kind, seed: int, lr: float) -> float:
        name = run_name({"library": library, "kind": kind, "lr": lr, "seed": seed})
        if name not in known:
            begin = time.process_time()
            coder = LIBRARIES[library](Task(train, kind, d_sae, k, batch_size, steps, seed, lr))
            seconds = round(time.process_time() - begin, 1)
            row = {"model": Path(about["model"]).name, "site": about["site"], "kind": kind, "library": library}
            row |= {"lr": lr, "seed": seed, **setting, "cpu_seconds": seconds, **validated(coder, valid, k)}
            save(coder, Path(acts) / "coders" / name, provenance)
            with (Path(acts) / ROWS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
            known[name] = row
        return known[name]["valid_fvu"]

    for kind in kinds:
        for library in libraries:
            best = best_rate(partial(error, library, kind, seeds[0]), lrs)
            for seed in seeds[1:]:
                error(library, kind, seed, best)


def best_rate(error: Callable[[float], float], rates: tuple[float, ...]) -> float:
    """The rate of least error, of a grid that grows by its own factor, at most `MOST_BEYOND` times, until it is inside.

    >>> best_rate(lambda rate: abs(rate - 0.3), (0.001, 0.003, 0.01, 0.03))
    0.3
    """

    def tried(rate: float) -> float:
        found = error(rate)
        return found if math.isfinite(found) else math.inf

    errors = {rate: tried(rate) for rate in rates}
    for _ in range(MOST_BEYOND):
        low, *_, high = ordered = sorted(errors)
        best = min(errors, key=lambda rate: errors[rate])
        if best not in (low, high):
            break
        beyond = low**2 / ordered[1] if best == low else high**2 / ordered[-2]
        beyond = float(f"{beyond:.1g}")
        errors[beyond] = tried(beyond)
    return min(errors, key=lambda rate: errors[rate])


def run_name(row: dict[str, Any]) -> str:
    """The name of a run, and of its coder's directory."""
    return f"{row['kind']}-{row['library']}-{row['lr']:g}-s{row['seed']}"


def read_lines(acts: str, name: str = ROWS) -> list[dict[str, Any]]:
    """The rows of a file of a directory; none if there is no such file."""
    path = Path(acts) / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def chosen(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of each kind and library at its best rate: that of least validation FVU with the first run's seed."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        found = best.setdefault((row["kind"], row["library"]), row)
        if row["seed"] == found["seed"] and row["valid_fvu"] < found["valid_fvu"]:
            best[row["kind"], row["library"]] = row
    return [row for row in rows if row["lr"] == best[row["kind"], row["library"]]["lr"]]


def validated(coder: Coder, x: Tensor, k: int) -> dict[str, float]:
    """FVU and dead share on validation rows x [n, d], and FVU and L0 at the threshold that training left.

    BatchTopK's threshold is then set so that these rows use k latents on average, as it is for every library; the test
    keeps it. TopK has no threshold, so both FVUs are the same.
    """
    left = reconstruction(coder, x)
    if isinstance(coder, BatchTopK):
        set_threshold(coder, x, k)
    even = reconstruction(coder, x)
    return {
        "own_fvu": left["fvu"],
        "own_l0": left["l0"],
        "valid_fvu": even["fvu"],
        "valid_l0": even["l0"],
        "valid_dead": even["dead"],
    }


@torch.no_grad()
def reconstruction(coder: Coder, x: Tensor) -> dict[str, float]:
    """FVU in float64, L0 and the share of latents that none of x [n, d] uses."""
    error, used, uses = 0.0, 0, torch.zeros(coder.d_sae, dtype=torch.int64)
    for part in x.split(4096):
        picks, values = coder.latents(part)
        error += (part.double() - coder.reconstruct(part).double()).square().sum().item()
        used += int((values > 0).sum())
        uses += picks.indices[values > 0].bincount(minlength=coder.d_sae)
    variance = (x.double() - x.double().mean(0)).square().sum().item()
    return {"fvu": error / variance, "l0": used / len(x), "dead": (uses == 0).double().mean().item()}


@torch.no_grad()
def set_threshold(coder: BatchTopK, x: Tensor, k: int) -> None:
    """Set the threshold above which x [n, d] uses k latents a token on average; fewer if fewer are above 0."""
    assert coder.b_enc is not None
    pre = torch.cat([(coder.project(part) + coder.b_enc).flatten() for part in x.split(4096)])
    least = pre.topk(min(k * len(x) + 1, len(pre)), sorted=False).values.min()
    coder.threshold.copy_(least.clamp_min(0))
