"""Makes the tables that `eval.py specialization` prints, at most 100 columns wide, and its CSV table of units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slms.measure.rows import Row
from slms.measure.specialization import UnitTable
from slms.report.place_tables import place_tables
from slms.report.tables import INDENT, WIDTH, amount, share
from slms.report.words import visible

UNIT_COLUMNS = ("place", "unit", "active", "coherence", "coherence_z", "community")
"""The columns of units.csv before those of the families and the top tokens."""


def specialization_table(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """Tables of every metric by place, and of what the numbers rest on."""
    text = f"{amount(about['tokens'])} tokens of {about['source']}, {about['documents']} documents"
    heading = f"{about['model']}: {about['units']} on {text}"[:WIDTH]
    return "\n\n".join([heading, *(table.text for table in place_tables(rows)), _notes(about)])


def _notes(about: Mapping[str, Any]) -> str:
    covered = [f"{visible(name.replace(' ', ''), 16)} {share(value)}" for name, value in about["coverage"].items()]
    lines = [f"labelled (given the token: of what there is to tell): {', '.join(covered[:2])}"]
    lines += [", ".join(covered[i : i + 4]) for i in range(2, len(covered), 4)]
    lines.append("null: labels or tokens permuted, already subtracted but from Q; control: the same model with")
    lines.append("random weights; stable: adjusted Rand index of communities over seeds")
    lines += _cost(about["seconds"])
    return "\n".join(INDENT + line for line in lines)


def _cost(seconds: Mapping[str, float]) -> list[str]:
    """Lines that compare CPU time with that of the model's own forward pass over the same tokens, with logits."""
    own, given = seconds["forward"] + seconds["logits"], "si_given_token"
    known = {"forward", "thresholds", "counting", "sparsity", "si"}
    cost = sum(value for key, value in seconds.items() if key in known)
    whole = (cost + seconds[given]) / own
    rest = [f"{key} {value:.1f}" for key, value in seconds.items() if key in ("coherence", "q", "q_partition")]
    return [
        f"CPU seconds: the model's own forward pass {own:.1f}; AS and SI, its part of that pass included, {cost:.1f}",
        f"({cost / own:.2f} times), SI given the token {seconds[given]:.1f} ({whole:.2f} in all), " + ", ".join(rest),
    ]


def unit_csv(units: Sequence[UnitTable], label_names: Mapping[str, Sequence[str]], texts: Mapping[int, str]) -> str:
    """CSV with a line per unit: `UNIT_COLUMNS`, three columns per family, top tokens. texts: token id → its text."""
    import pandas as pd

    frames = []
    for table in units:
        frame = pd.DataFrame({name: column.numpy() for name, column in table.columns.items()})
        frame.insert(0, "place", table.place)
        frame.insert(1, "unit", range(len(frame)))
        frame["community"] = frame["community"].astype("Int64").where(frame["community"] >= 0)
        for family, names in label_names.items():
            frame[f"class_{family}"] = [names[c] if c >= 0 else None for c in frame[f"class_{family}"]]
        tokens = [dict.fromkeys(texts[i] for i in best if i >= 0) for best in table.top_tokens.tolist()]
        frame["top_tokens"] = ["|".join(found) for found in tokens]
        frames.append(frame.replace([float("inf"), -float("inf")], None))
    return pd.concat(frames).to_csv(index=False, lineterminator="\n")
