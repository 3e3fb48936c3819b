"""Measures the cost of a whole training step: ours, the dense reference's, and SAELens's if it is installed.

    OMP_NUM_THREADS=1 python -m benchmarks.coder_step --rounds 6

It interleaves the steps on one thread and takes process CPU time, so that other work on the machine affects all alike.
SAELens needs an environment of its own; run this there with PYTHONPATH set to this repository.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from slms.sae.coders import KINDS, build_coder
from slms.sae.config import CoderConfig
from slms.sae.optim import CoderOptimizerConfig
from slms.sae.reference import reference_loss

Step = Callable[[Tensor], None]


def our_step(d: int, config: CoderConfig, dense: bool = False) -> Step:
    """Run forward, backward, projection, clipping, Adam and renormalisation, as in a run.

    `dense` takes the reference's loss and Adam's default implementation.
    """
    coder = build_coder(config, d)
    if config.fixed_k:
        coder.release_norms()
    optimizer = torch.optim.Adam(coder.parameters(), lr=2e-4, eps=6.25e-10, fused=not dense)
    since_fired = torch.zeros(coder.d_sae, dtype=torch.int64)

    def step(x: Tensor) -> None:
        losses = None if dense else coder.loss(x, x)
        (reference_loss(coder, x, x) if losses is None else losses.total).backward()
        coder.project_gradient()
        CoderOptimizerConfig().clip_gradient(coder)
        optimizer.step()
        optimizer.zero_grad()
        coder.after_step()
        if losses is not None:
            coder.observe(losses)
            since_fired.add_(len(x))
            since_fired[losses.picks.indices[losses.values > 0]] = 0

    return step


def saelens_step(d: int, config: CoderConfig, batch_size: int) -> Step:
    """SAELens's own trainer, with every option but the sizes at its default."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=config.d_sae, k=config.k, dtype="float32", device="cpu"))
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            n_checkpoints=0,
            checkpoint_path=None,
            save_final_checkpoint=False,
            total_training_samples=10**9,
            device="cpu",
            autocast=False,
            lr=3e-4,
            lr_end=3e-5,
            lr_scheduler_name="constant",
            lr_warm_up_steps=0,
            adam_beta1=0.9,
            adam_beta2=0.999,
            lr_decay_steps=0,
            n_restart_cycles=1,
            train_batch_size_samples=batch_size,
            dead_feature_window=1000,
            feature_sampling_window=2000,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=iter(()),
    )

    def step(x: Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    return step


def main() -> None:
    """Print best and median CPU milliseconds of each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"d": 512, "latents": 16384, "k": 32, "batch": 1024, "rounds": 6}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--kind", choices=KINDS, default="topk")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = CoderConfig(kind=args.kind, d_sae=args.latents, k=args.k)
    steps = {"ours": our_step(args.d, config), "dense": our_step(args.d, config, dense=True)}
    if importlib.util.find_spec("sae_lens") and args.kind == "topk":
        steps["SAELens"] = saelens_step(args.d, config, args.batch)
    batches = [torch.randn(args.batch, args.d) / args.d**0.5 for _ in range(4)]
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(args.rounds):
        for name, step in steps.items():
            begin = time.process_time()
            step(batches[i % len(batches)])
            spent[name].append(1e3 * (time.process_time() - begin))
    print(f"torch {torch.__version__}, d {args.d}, latents {args.latents}, k {args.k}, batch {args.batch}, {args.kind}")
    for name, ms in spent.items():
        best, median = min(ms), statistics.median(ms)
        ratio = median / statistics.median(spent["ours"])
        print(f"{name:8} best {best:8.1f} ms   median {median:8.1f} ms   {ratio:5.2f} × ours")


if __name__ == "__main__":
    main()
