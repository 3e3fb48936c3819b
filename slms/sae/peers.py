"""Reconstruction beside SAELens and dictionary_learning: each trains on the same activations in the same order.

    python -m slms.sae.peers dump stories-1m acts --site residual.3
    python -m slms.sae.peers train acts results.jsonl --libraries '[ours,saelens,dictionary_learning]'
    python -m slms.sae.peers table results.jsonl

`train` for a peer wants an environment that has it. Each peer trains by its own trainer, in two recipes: `default`,
its own defaults with its normalisation of the input, and `scaled`, what it offers of warm-up, decay, AuxK and dead
windows set to the same shares of the run as ours, at learning rate `lr`. FVU is of held-out tokens, in float64; of
BatchTopK it is taken at each coder's own threshold, and at the threshold that gives exactly k latents a token.

Shapes: n tokens, d width of the site, s latents.
"""

import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor

from slms.cli import Parser, one_line_errors
from slms.data.sites import Site, find_site, read_sites
from slms.data.text import BlockSpec, load_blocks
from slms.files import write_atomic
from slms.models.base import load_base
from slms.report.tables import text_table
from slms.sae.config import CoderConfig
from slms.sae.fit import fit
from slms.sae.optim import CoderOptimizerConfig
from slms.sae.trainee import CoderSpec, Trainee

Library = Literal["ours", "saelens", "dictionary_learning"]
Kind = Literal["topk", "batch_topk"]
Recipe = Literal["default", "scaled"]
DEFAULT: Recipe = "default"
N_TEST = 32_768
SAMPLE = 65_536


def dump(
    model: str, out: str, site: str = "residual.3", corpus: str = "stories", n_tokens: int = 2_200_000, seed: int = 0
) -> None:
    """Write a site's activations, shuffled, without special tokens: OUT/train.npy and OUT/test.npy.

    Args:
        model: an embedded name, a hub id or a directory.
        out: directory.
        site: where to read.
        corpus: `stories`, a file or a dataset id.
        n_tokens: tokens of text to read.
        seed: order of the rows.
    """
    lm, tokenizer = load_base(model)
    assert tokenizer is not None  # `load_base` refuses a base without one
    place = find_site(lm.eval(), site)
    blocks = load_blocks(BlockSpec(corpus, "train", None, "text", seed, 256, n_tokens, False), tokenizer).input_ids
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    rows = []
    for start in range(0, len(blocks), 16):
        ids = torch.from_numpy(blocks[start : start + 16].astype(np.int64))
        kept = ~torch.isin(ids.flatten(), torch.tensor(sorted(special)))
        rows.append(read_sites(lm, ids, [place])[site].float()[kept])
    x = torch.cat(rows)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    np.save(directory / "test.npy", x[:N_TEST].numpy())
    np.save(directory / "train.npy", x[N_TEST:].numpy())
    about = {"model": model, "site": site, "corpus": corpus, "train": len(x) - N_TEST, "test": N_TEST}
    write_atomic(directory / "about.json", json.dumps(about, indent=1))
    print(json.dumps(about))


class Task(NamedTuple):
    """What every library gets.

    Attributes:
        train: [n, d] float32.
        kind: TopK or BatchTopK.
        d_sae: s.
        k: latents a token.
        batch_size: tokens of a step.
        steps: of training, one batch each.
        seed: of initial weights and of the order of the batches.
        lr: peak learning rate; None takes the library's own.
        recipe: `default` or `scaled`.
    """

    train: np.ndarray
    kind: Kind
    d_sae: int
    k: int
    batch_size: int
    steps: int
    seed: int
    lr: float | None
    recipe: Recipe

    def batches(self) -> Iterator[Tensor]:
        """`steps` batches [batch_size, d], every row at most once a pass."""
        generator = np.random.default_rng(self.seed)
        while True:
            order = generator.permutation(len(self.train))
            for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
                yield torch.from_numpy(self.train[np.sort(order[start : start + self.batch_size])])

    def sample(self) -> Tensor:
        """The first rows, for scales and centres."""
        return torch.from_numpy(np.array(self.train[:SAMPLE]))


class Trained(NamedTuple):
    """A trained coder as plain functions of activations.

    Attributes:
        pre: x [n, d] → activations [n, s] before anything is selected, at least 0.
        decode: activations [n, s] → ŷ [n, d].
        threshold: above which BatchTopK uses a latent; None for TopK.
    """

    pre: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    threshold: float | None


def ours(task: Task) -> Trained:
    """The coder of a run of `train.py` on these batches."""
    torch.manual_seed(task.seed)
    here, sample = Site("residual", 0), task.sample()
    config = CoderConfig(kind=task.kind, d_sae=task.d_sae, k=task.k, seed=task.seed)
    trainee = Trainee(CoderSpec(here.name, coder=config), here, here, sample, sample)
    batches = ({here.name: batch} for batch in task.batches())
    coder = fit(trainee, batches, task.steps, CoderOptimizerConfig(lr=task.lr)).folded()
    threshold = coder.threshold.item() if task.kind == "batch_topk" else None
    return Trained(lambda x: (coder.project(x) + coder.b_enc).relu(), coder.decode, threshold)


def saelens(task: Task) -> Trained:
    """SAELens's trainer, the input scaled to E‖x‖ = √d as its `expected_average_only_in` does."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(task.seed)
    sample = task.sample()
    d, scaled = sample.shape[1], task.recipe == "scaled"
    scale = d**0.5 / sample.norm(dim=1).mean().item()
    sizes = {"d_in": d, "d_sae": task.d_sae, "k": task.k, "dtype": "float32", "device": "cpu"}
    sae = (
        TopKTrainingSAE(TopKTrainingSAEConfig(**sizes))
        if task.kind == "topk"
        else BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes))
    )
    lr = task.lr or 3e-4
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, device="cpu", autocast=False, lr=lr,
            total_training_samples=task.steps * task.batch_size, lr_end=lr / 10, lr_scheduler_name="constant",
            lr_warm_up_steps=task.steps // 20 if scaled else 0, lr_decay_steps=task.steps // 5 if scaled else 0,
            adam_beta1=0.9, adam_beta2=0.999, n_restart_cycles=1, train_batch_size_samples=task.batch_size,
            dead_feature_window=max(task.steps // 20, 1) if scaled else 1000, feature_sampling_window=2000,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=(batch * scale for batch in task.batches()),
    )  # fmt: skip
    trainer.fit()
    sae.eval()
    norms = sae.W_dec.norm(dim=1)

    def pre(x: Tensor) -> Tensor:
        return ((sae.process_sae_in(x * scale) @ sae.W_enc + sae.b_enc) * norms).relu()

    def decode(acts: Tensor) -> Tensor:
        return ((acts / norms) @ sae.W_dec + sae.b_dec) / scale

    return Trained(pre, decode, sae.topk_threshold.item() if task.kind == "batch_topk" else None)


def dictionary_learning(task: Task) -> Trained:
    """dictionary_learning's trainer, the input scaled to E‖x‖² = 1 as its `normalize_activations` does."""
    from dictionary_learning.trainers import BatchTopKTrainer, TopKTrainer

    sample = task.sample()
    scaled = task.recipe == "scaled"
    scale = sample.square().sum(1).mean().rsqrt().item()
    options: dict[str, float] = {"warmup_steps": 1000} if not scaled else {"warmup_steps": task.steps // 20}
    if scaled:
        options |= {
            "decay_start": int(0.8 * task.steps), "threshold_start_step": task.steps // 20, "auxk_alpha": 1 / 32,
            "threshold_beta": 1 - 1 / min(max(task.steps // 50, 10), 1000),
        }  # fmt: skip
    trainer = (TopKTrainer if task.kind == "topk" else BatchTopKTrainer)(
        steps=task.steps, activation_dim=sample.shape[1], dict_size=task.d_sae, k=task.k, layer=0, lm_name="",
        lr=task.lr, device="cpu", seed=task.seed, **options,
    )  # fmt: skip
    if scaled:
        trainer.dead_feature_threshold = max(task.steps * task.batch_size // 20, 1)
    for step, batch in zip(range(task.steps), task.batches(), strict=False):
        trainer.update(step, batch * scale)
    ae = trainer.ae.eval()

    def pre(x: Tensor) -> Tensor:
        return ae.encoder(x * scale - ae.b_dec).relu()

    threshold = ae.threshold.item() if task.kind == "batch_topk" else None
    return Trained(pre, lambda acts: ae.decode(acts) / scale, threshold)


LIBRARIES: dict[str, Callable[[Task], Trained]] = {
    "ours": ours,
    "saelens": saelens,
    "dictionary_learning": dictionary_learning,
}


@torch.no_grad()
def judge(trained: Trained, x: Tensor, k: int) -> dict[str, float | None]:
    """FVU and L0 at the coder's own threshold, FVU at exactly k latents a token on average, and the dead share.

    TopK takes the k largest of each token; there the two FVUs are one.
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
    """Train and judge each combination; append a JSON line each to OUT.

    Args:
        acts: a directory made by `dump`.
        out: file of results.
        libraries: who trains; `ours` has one recipe, its defaults.
        kinds: coders.
        recipes: of the peers.
        seeds: of weights and order.
        lrs: peak learning rates; null is the library's own.
        d_sae: latents.
        k: latents a token.
        batch_size: tokens of a step.
        steps: of training; null makes one pass.
    """
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    about = json.loads((Path(acts) / "about.json").read_text())
    activations = np.load(Path(acts) / "train.npy", mmap_mode="r")
    test = torch.from_numpy(np.load(Path(acts) / "test.npy"))
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
                            **about, "library": library, "kind": kind, "recipe": recipe, "lr": lr, "seed": seed,
                            "d_sae": d_sae, "k": k, "batch_size": batch_size, "steps": steps,
                            "cpu_seconds": round(time.process_time() - begin, 1), **judge(trained, test[:16384], k),
                        }  # fmt: skip
                        print(json.dumps(row), flush=True)
                        with Path(out).open("a", encoding="utf-8") as file:
                            file.write(json.dumps(row) + "\n")


def table(results: str) -> None:
    """Means over seeds of a file that `train` wrote, one line a library, recipe and learning rate."""
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
        rows.append([Path(model).name, *rest, "own" if lr is None else f"{lr:g}", str(len(found)), at_k,
                     f"{means['fvu']:.4f}", f"{means['l0']:.1f}", f"{means['dead']:.1%}",
                     f"{means['cpu_seconds']:.0f}"])  # fmt: skip
    print(text_table(head, rows, left=6))


if __name__ == "__main__":
    with one_line_errors("python -m slms.sae.peers"):
        auto_cli([dump, train, table], parser_class=Parser, description=__doc__)
