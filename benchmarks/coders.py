"""Compares reconstruction with SAELens and dictionary_learning, all trained on the same activations in the same order.

    python -m benchmarks.coders dump stories-1m acts --site residual.3
    python -m benchmarks.coders train acts results.jsonl --libraries '[ours,saelens,dictionary_learning]'
    python -m benchmarks.coders table results.jsonl

To `train` with a library you need an environment that has it. Each library uses its own trainer, in two recipes.
`default`: its own defaults, with its normalisation of the input. `scaled`: AuxK if it offers it, warm-up and decay at
our shares of the run, and a twentieth of the run as dead window (a hundredth, as ours, is worse for SAELens: FVU .031
against .029, stories260K, TopK), at learning rate `lr`. FVU is measured on held-out tokens, in float64; for BatchTopK
at each coder's own threshold and at the threshold that gives exactly k latents per token.

Shapes: n tokens, d width of the site, s latents.
"""

import importlib.util
import json
import logging
import time
from collections import defaultdict
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor

from benchmarks.coder_rivals import LIBRARIES, PACKAGES, Kind, Recipe, Task, Trained
from slms.cli import Parser, one_line_errors
from slms.data.text import BlockSpec, load_blocks
from slms.data.tokenizer import special_ids
from slms.files import write_atomic
from slms.models.base import load_base
from slms.models.sites import find_site, read_sites
from slms.report.tables import text_table

Library = Literal["ours", "saelens", "dictionary_learning"]
DEFAULT: Recipe = "default"
N_TEST = 32_768


def dump(
    model: str, out: str, site: str = "residual.3", corpus: str = "stories", n_tokens: int = 2_200_000, seed: int = 0
) -> None:
    """Write a site's activations, shuffled, without special tokens: OUT/train.npy and OUT/test.npy.

    Args:
        model: an embedded name, a hub id or a directory.
        out: the directory to write.
        site: the site to read.
        corpus: `stories`, a file or a dataset id.
        n_tokens: tokens of text to read.
        seed: seed of the order of the rows.

    Raises:
        ValueError: the text is too short, or the model has no such site.
    """
    lm, tokenizer = load_base(model)
    assert tokenizer is not None  # `load_base` refuses a base without one
    place = find_site(lm.eval(), site)
    block_size = min(256, getattr(lm.config, "max_position_embeddings", 256))
    spec = BlockSpec(corpus, "train", None, "text", seed, block_size, n_tokens, False)
    blocks = load_blocks(spec, tokenizer).input_ids
    rows = []
    for start in range(0, len(blocks), 16):
        ids = torch.from_numpy(blocks[start : start + 16].astype(np.int64))
        kept = ~torch.isin(ids.flatten(), special_ids(tokenizer))
        rows.append(read_sites(lm, ids, [place])[site].float()[kept])
    x = torch.cat(rows)
    if len(x) <= N_TEST:
        raise ValueError(f"--n_tokens {n_tokens}: {len(x)} tokens were kept; {N_TEST} are held out for the test")
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    np.save(directory / "test.npy", x[:N_TEST].numpy())
    np.save(directory / "train.npy", x[N_TEST:].numpy())
    about = {"model": model, "site": site, "corpus": corpus, "train": len(x) - N_TEST, "test": N_TEST}
    write_atomic(directory / "about.json", json.dumps(about, indent=1))
    print(json.dumps(about))


@torch.no_grad()
def judge(trained: Trained, x: Tensor, k: int) -> dict[str, float | None]:
    """FVU and L0 at the coder's own threshold, FVU at exactly k latents per token on average, and the dead share.

    TopK uses the k largest latents of each token, so its two FVUs are the same.
    """
    pre = trained.pre(x)
    if trained.threshold is None:
        top = pre.topk(k, dim=1)
        own = even = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    else:
        own = pre * (pre > trained.threshold)
        even = pre * (pre >= pre.flatten().topk(k * len(x), sorted=False).values.min())
    variance = (x - x.mean(0)).double().square().sum()

    def fvu(acts: Tensor) -> float:
        return ((x - trained.decode(acts)).double().square().sum() / variance).item()

    used = own > 0
    dead = 1 - used.any(0).double().mean().item()
    return {"fvu": fvu(own), "l0": used.sum(1).double().mean().item(), "fvu_at_k": fvu(even), "dead": dead}


def train(
    acts: str,
    out: str,
    libraries: tuple[Library, ...] = ("ours",),
    kinds: tuple[Kind, ...] = ("topk", "batch_topk"),
    recipes: tuple[Recipe, ...] = ("default", "scaled"),
    seeds: tuple[int, ...] = (0, 1),
    lrs: tuple[float | None, ...] = (None,),
    d_sae: int = 1024,
    k: int = 32,
    batch_size: int = 2048,
    steps: int | None = None,
) -> None:
    """Train and judge each combination, and append a JSON line for each to OUT.

    Args:
        acts: a directory made by `dump`.
        out: the file for the results.
        libraries: the libraries that train; `ours` has one recipe, its defaults.
        kinds: kinds of coders.
        recipes: recipes of the other libraries.
        seeds: seeds of weights and order.
        lrs: peak learning rates; null means the library's own.
        d_sae: number of latents.
        k: latents for each token.
        batch_size: tokens in a step.
        steps: training steps; null makes one pass over the data.

    Raises:
        ValueError: a library is not installed, or a batch is larger than the data.
    """
    torch.set_num_threads(1)
    for library in libraries:
        if library != "ours" and importlib.util.find_spec(PACKAGES[library]) is None:
            raise ValueError(f"--libraries {library}: {PACKAGES[library]} is not installed")
    about = json.loads((Path(acts) / "about.json").read_text())
    activations = np.load(Path(acts) / "train.npy", mmap_mode="r")
    test = torch.from_numpy(np.load(Path(acts) / "test.npy"))
    if not 0 < batch_size <= len(activations):
        raise ValueError(f"--batch_size {batch_size}: it must be between 1 and the {len(activations)} tokens of {acts}")
    steps = steps or len(activations) // batch_size
    for seed in seeds:
        for kind in kinds:
            for library in libraries:
                for recipe in recipes if library != "ours" else (DEFAULT,):
                    for lr in lrs:
                        task = Task(activations, kind, d_sae, k, batch_size, steps, seed, lr, recipe)
                        begin = time.process_time()
                        trained = LIBRARIES[library](task)
                        row = {
                            **about,
                            "library": library,
                            "kind": kind,
                            "recipe": recipe,
                            "lr": lr,
                            "seed": seed,
                            "d_sae": d_sae,
                            "k": k,
                            "batch_size": batch_size,
                            "steps": steps,
                            "cpu_seconds": round(time.process_time() - begin, 1),
                            **judge(trained, test[:16384], k),
                        }
                        print(json.dumps(row), flush=True)
                        with Path(out).open("a", encoding="utf-8") as file:
                            file.write(json.dumps(row) + "\n")


def table(results: str) -> None:
    """Print means over seeds from a file that `train` wrote, a line for each library, recipe and learning rate."""
    groups = defaultdict(list)
    for line in Path(results).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        groups[row["model"], row["site"], row["kind"], row["library"], row["recipe"], row["lr"]].append(row)
    head = ["model", "site", "coder", "library", "recipe", "lr", "seeds", "FVU at k", "FVU", "L0", "dead", "CPU s"]
    rows = []
    for key, found in sorted(groups.items(), key=lambda item: [str(part) for part in item[0]]):
        means = {name: float(np.mean([row[name] for row in found])) for name in ("fvu", "l0", "dead", "cpu_seconds")}
        at_k = " ".join(f"{row['fvu_at_k']:.4f}" for row in sorted(found, key=lambda row: row["seed"]))
        model, *rest, lr = key
        rows.append(
            [
                Path(model).name,
                *rest,
                "own" if lr is None else f"{lr:g}",
                str(len(found)),
                at_k,
                f"{means['fvu']:.4f}",
                f"{means['l0']:.1f}",
                f"{means['dead']:.1%}",
                f"{means['cpu_seconds']:.0f}",
            ]
        )
    print(text_table(head, rows, left=6))


def main() -> None:
    """Run the command line."""
    with one_line_errors("python -m benchmarks.coders"):
        auto_cli([dump, train, table], parser_class=Parser, description=__doc__)


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # the other libraries' own
    main()
