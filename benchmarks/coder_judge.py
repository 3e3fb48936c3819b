"""Judges the coders that `sweep` chose, on the test documents.

Shapes: n tokens, d width of the site, s latents.
"""

import csv
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks.coder_data import BATCH, Rows, read_about, read_rows, read_test_blocks
from benchmarks.coder_probing import KS, Labelled, Probe, absorption, probing, site_probes
from benchmarks.coder_sweep import ROWS, chosen, read_lines, run_name
from slms.data.tokenizer import special_ids
from slms.files import replacing
from slms.measure.passes import batches
from slms.models.base import load_base
from slms.models.sites import find_site
from slms.progress import progress
from slms.report.tables import text_table
from slms.sae.base import Coder
from slms.sae.baselines import FixedCoder
from slms.sae.evaluate import update_qualities
from slms.sae.load import load_coder
from slms.sae.quality import CoderQuality

JUDGED = "judged.jsonl"
SAMPLE = 8192  # training tokens on which probes are fitted, and which set the bound for activations of extreme norm
SITE = "site's own dimensions"


def judge(acts: str, families: tuple[str, ...] = ()) -> None:
    """Measure the chosen coders on the test documents, and write a JSON line for each to ACTS/judged.jsonl.

    FVU (float64), L0, dead share, the loss in nats with the coder's output in place of the site less that without, and
    KL are those of `eval.py sae`. With FAMILIES also k-sparse probing of these labels and absorption, and probing with
    the site's own dimensions.

    Args:
        acts: a directory in which `sweep` has finished.
        families: label families to probe, such as `pos`.

    Raises:
        ValueError: there is no coder, or the text has no such labels.
    """
    torch.set_num_threads(1)
    runs = chosen(read_lines(acts))
    if not runs:
        raise ValueError(f"{Path(acts) / ROWS}: no run; call `sweep` first")
    test = read_rows(acts, "test").at(slice(None))
    if unknown := [family for family in families if family not in test.labels]:
        raise ValueError(f"--families {unknown[0]}: this text has no such labels; it has {', '.join(test.labels)}")
    train = read_rows(acts, "train").at(slice(0, SAMPLE))
    coders = [load_coder(Path(acts) / "coders" / run_name(run)) for run in runs]
    found = [run | quality for run, quality in zip(runs, _qualities(acts, coders, train), strict=True)]
    own = {"model": runs[0]["model"], "site": runs[0]["site"], "library": SITE, "d": runs[0]["d"]}
    for family in progress(families, "probing"):
        x = _labelled(train, family), _labelled(test, family)
        probes = site_probes(*x)
        own |= {f"probe{k}_{family}": probing(*x, k) for k in KS} | {f"probe_{family}": probing(*x, None)}
        for row, coder in zip(found, coders, strict=True):
            row |= {f"{name}_{family}": value for name, value in probed(coder, *x, probes).items()}
    lines = [*found, own] if families else found
    with replacing(Path(acts) / JUDGED) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")


def _qualities(acts: str, coders: list[Coder], train: Rows) -> list[dict[str, float]]:
    """FVU, L0, dead share, losses and KL of each coder, in one pass over the test blocks."""
    about, blocks = read_about(acts), read_test_blocks(acts)
    lm, tokenizer = load_base(about["model"])
    assert tokenizer is not None
    site, special, sample = find_site(lm.eval(), about["site"]), special_ids(tokenizer), torch.from_numpy(train.x)
    placed = [FixedCoder(coder, site, site, sample, sample) for coder in coders]
    qualities = [CoderQuality(coder.d_in, coder.d_sae) for coder in coders]
    for batch in progress(batches(blocks, BATCH), "judging", -(-len(blocks.input_ids) // BATCH)):
        update_qualities(lm, batch, placed, special, qualities, full=True)
    out = []
    for quality in (one.compute() for one in qualities):
        clean, replaced = quality.ce_clean.value, quality.ce.value
        row = {"fvu": quality.fvu.value, "l0": quality.l0.value, "dead": quality.dead, "ce_clean": clean}
        row |= {"ce_added": replaced - clean, "kl": quality.kl.value, "ce_recovered": quality.recovered["zero"].value}
        out.append(row | {"test_tokens": quality.fvu.n})
    return out


def probed(coder: Coder, train: Labelled, test: Labelled, probes: dict[int, Probe]) -> dict[str, float]:
    """`probe1`, `probe5` and `absorbed` of one label family.

    Args:
        coder: the coder.
        train, test: activations [n, d] of the site with their classes.
        probes: those of `site_probes`.
    """
    latents = (
        train._replace(values=dense_latents(coder, train.values)),
        test._replace(values=dense_latents(coder, test.values)),
    )
    scores = {f"probe{k}": probing(*latents, k) for k in KS}
    return scores | {"absorbed": absorption(probes, test.values, *latents, coder.W_dec, coder.b_dec)}


def _labelled(rows: Rows, family: str) -> Labelled:
    return Labelled(torch.from_numpy(rows.x), torch.from_numpy(rows.labels[family].astype("int64")))


def dense_latents(coder: Coder, x: Tensor) -> Tensor:
    """The activations [n, s] of the latents in use at x [n, d]; 0 elsewhere."""
    parts = []
    for part in x.split(4096):
        picks, values = coder.latents(part)
        parts.append(picks.dense(values))
    return torch.cat(parts)


MEASURES = ("fvu", "l0", "dead", "ce_added", "kl")


def table(acts: tuple[str, ...], csv_file: str | None = None) -> None:
    """Print means over seeds, with the least and the largest, of what `judge` wrote.

    Args:
        acts: directories in which `judge` has finished.
        csv_file: also write there the row of every run, those of the sweep included.

    Raises:
        ValueError: a directory was not judged.
    """
    groups, rows = defaultdict(list), []
    for directory in acts:
        judged = read_lines(directory, JUDGED)
        if not judged:
            raise ValueError(f"{Path(directory) / JUDGED}: no row; call `judge` first")
        for row in judged:
            groups[row["model"], row["site"], row.get("kind", ""), row["library"]].append(row)
        names = {run_name(row) for row in judged if "kind" in row}
        rows += judged + [row for row in read_lines(directory) if run_name(row) not in names]
    probes = sorted({name for row in rows for name in row if name.startswith(("probe", "absorbed"))})
    shown = [*MEASURES, *probes]
    head = ["model", "site", "coder", "library", "lr", "seeds", *shown]
    lines = [
        [*key, f"{found[0]['lr']:g}" if "lr" in found[0] else "", str(len(found)), *(_cell(found, m) for m in shown)]
        for key, found in groups.items()
    ]
    print(text_table(head, lines, left=4))
    if csv_file is not None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with replacing(Path(csv_file)) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def _cell(rows: list[dict[str, Any]], measure: str) -> str:
    """The mean, and the range in brackets if there are several."""
    values = [row[measure] for row in rows if measure in row]
    if not values:
        return ""
    mean, ends = f"{fmean(values):.4f}", f" [{min(values):.4f}, {max(values):.4f}]"
    return mean + ends * (len(values) > 1)
