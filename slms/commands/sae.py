"""`eval.py sae`: what a sparse autoencoder is worth, beside PCA and a random one at equal L0."""

import json
from pathlib import Path

import torch

from slms.commands.coder import open_coder, special_ids
from slms.commands.subject import Subject
from slms.files import write_atomic
from slms.lit.evaluate import batches
from slms.sae.baselines import PCA, FixedCoder, random_coder
from slms.sae.evaluate import Placed, measure
from slms.sae.quality import CoderQuality, Quality


def sae(
    directory: str,
    model: str | None = None,
    site: str | None = None,
    target: str | None = None,
    corpus: str | None = None,
    validation: str | None = None,
    split: str = "validation",
    block_size: int | None = None,
    n_tokens: int | None = 65_536,
    batch_size: int = 16,
    baselines: bool = True,
    output_dir: str = "artifacts",
) -> None:
    """L0, FVU, loss recovered (zero and mean ablation), KL and dead share of a SAELens directory, with intervals.

    Args:
        directory: holds cfg.json and sae_weights.safetensors.
        model: what it reads: a run or model directory, `stories-1m` or a hub id; by default what the directory names.
        site: where it reads (`residual.3`); by default what the directory names.
        target: where a transcoder writes; by default what the directory names.
        corpus: `stories`, a .txt/.jsonl/.parquet file or a dataset id; the run's own corpus, else `stories`.
        validation: a second corpus that holds the validation split.
        split: train, validation or test.
        block_size: context in tokens; what the directory names, else 256.
        n_tokens: tokens to measure on.
        batch_size: blocks of one forward pass.
        baselines: also measure PCA and a random coder at the same L0.
        output_dir: NAME.json goes to OUTPUT_DIR/sae/.
    """
    opened = open_coder(
        directory, model, site, target, split, batch_size, corpus=corpus, validation=validation, block_size=block_size,
        n_tokens=n_tokens,
    )  # fmt: skip
    coder, subject, source, to, x, y = opened
    coders: dict[str, Placed] = {"sae": FixedCoder(coder, source, to, x, y)}
    results = {"sae": _measure(subject, coders["sae"], coder.d_sae, batch_size)}
    if baselines:
        k = max(round(results["sae"].l0.value), 1)
        results["pca"] = _measure(subject, pca := PCA(source, to, x, y, k), pca.k, batch_size)
        rival = random_coder(source, to, x, y, coder.d_sae, k)
        results["random"] = _measure(subject, rival, coder.d_sae, batch_size)
    print(f"{directory}: {coder.config.kind}, {coder.d_sae} latents, of {subject.name} at {opened.place}")
    print(f"{'':8}{'L0':>9}{'FVU':>9}{'recovered':>11}{'(mean)':>9}{'KL':>9}{'dead':>8}")
    for name, q in results.items():
        zero, mean = q.recovered["zero"].value, q.recovered["mean"].value
        print(f"{name:8}{q.l0.value:9.2f}{q.fvu.value:9.4f}{zero:11.4f}{mean:9.4f}{q.kl.value:9.4f}{q.dead:8.2%}")
    out = {
        "directory": directory,
        "model": subject.name,
        "site": source.name,
        "target": to.name,
        **subject.text,
        "split": split,
        "kind": coder.config.kind,
        "d_sae": coder.d_sae,
        "results": {name: _plain(q) for name, q in results.items()},
    }
    path = Path(output_dir) / "sae" / f"{Path(directory).resolve().name}.json"
    print(f"written to {write_atomic(path, json.dumps(out, indent=1) + chr(10))}")


def _measure(subject: Subject, coder: Placed, d_sae: int, batch_size: int) -> Quality:
    quality = CoderQuality(len(coder.mean), d_sae)
    for batch in batches(subject.blocks, batch_size):
        measure(subject.model, batch, coder, special_ids(subject), quality, full=True)
    return quality.compute()


def _plain(quality: Quality) -> dict:
    """Plain JSON types; of the density, its quantiles."""
    out = {}
    for name, value in quality._asdict().items():
        if isinstance(value, dict):
            out[name] = {key: interval._asdict() for key, interval in value.items()}
        elif name == "density":
            shares = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
            out[name] = dict(
                zip(("p5", "p25", "p50", "p75", "p95"), value.double().quantile(shares).tolist(), strict=True)
            )
        else:
            out[name] = value._asdict() if hasattr(value, "_asdict") else value
    return out
