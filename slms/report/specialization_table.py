"""What `eval.py specialization` prints: at most 100 columns."""

from collections.abc import Mapping, Sequence
from typing import Any

from slms.models.place import short_names
from slms.report.specialization_rows import MEAN, Row
from slms.report.tables import INDENT, WIDTH, amount, number, share, text_table
from slms.report.words import visible

SPARSITY = {"gini": "Gini", "top_mass": ".9 mass", "participation": "PR/N", "zeros": "zeros"}
FAMILIES_A_TABLE = 2


def specialization_table(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """Sparsity, coherence and Q by place, then SI, two families a table."""
    at = {(row.place, row.metric, row.family): row for row in rows}
    found = list(dict.fromkeys(row.place for row in rows if row.place != MEAN))
    places = dict(zip([*found, MEAN], [*short_names(found), MEAN], strict=True))
    text = f"{amount(about['tokens'])} tokens of {about['source']}, {about['documents']} documents"
    blocks = [f"{about['model']}: {about['units']} on {text}"[:WIDTH], _first(places, at)]
    families = list(dict.fromkeys((row.metric, row.family) for row in rows if row.metric in ("si", "si_given_token")))
    for start in range(0, len(families), FAMILIES_A_TABLE):
        blocks.append(_si(places, at, families[start : start + FAMILIES_A_TABLE]))
    blocks.append(_notes(rows, about))
    return "\n\n".join(blocks)


def _first(places: Mapping[str, str], at: Mapping[tuple[str, str, str], Row]) -> str:
    head = ["place", *SPARSITY.values(), "coherence", "z", "Q", "Q null", "z", "stable"]
    with_partition = any((place, "q_partition", "") in at for place in places)
    head += ["Q path.", "z"] if with_partition else []
    body = []
    for place, name in places.items():
        cells = [number(_value(at, place, "sparsity", measure)) for measure in SPARSITY]
        coherence, q = at.get((place, "coherence", "")), at.get((place, "q", ""))
        cells += [number(coherence and coherence.value), _z(coherence), number(q and q.value)]
        cells += [number(q and q.null_mean), _z(q), number(_value(at, place, "q_stability", ""), 2)]
        if with_partition:
            partition = at.get((place, "q_partition", ""))
            cells += [number(partition and partition.value), _z(partition)]
        body.append([visible(name, 22), *cells])
    return text_table(head, body)


def _si(places: Mapping[str, str], at: Mapping[tuple[str, str, str], Row], families: Sequence[tuple[str, str]]) -> str:
    head = ["SI"]
    for metric, family in families:
        head += [
            f"SI {visible(family, 11)}" + ("|token" if metric == "si_given_token" else ""),
            "± 95 %",
            "z",
            "random",
        ]
    body = []
    for place, name in places.items():
        cells = [visible(name, 22)]
        for metric, family in families:
            row = at.get((place, metric, family))
            half = (row.high - row.low) / 2 if row and row.high is not None and row.low is not None else None
            cells += [number(row and row.value, 4), number(half, 4), _z(row), number(row and row.random_model, 4)]
        body.append(cells)
    return text_table(head, body)


def _notes(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    covered = [f"{visible(name.replace(' ', ''), 16)} {share(value)}" for name, value in about["coverage"].items()]
    lines = [f"labelled (given the token: of what there is to tell): {', '.join(covered[:2])}"]
    lines += [", ".join(covered[i : i + 4]) for i in range(2, len(covered), 4)]
    lines.append("z: standard deviations of the null (labels or tokens permuted), already subtracted but from Q;")
    lines.append("rand.: the same model with random weights; stable: adjusted Rand index of communities over seeds")
    lines += _cost(about["seconds"])
    return "\n".join(INDENT + line for line in lines)


def _cost(seconds: Mapping[str, float]) -> list[str]:
    """CPU time against that of the model's own forward pass over the same tokens, logits included."""
    own, given = seconds["forward"] + seconds["logits"], "SI given the token"
    known = {"forward", "thresholds", "counting", "AS", "SI"}
    cost = sum(value for key, value in seconds.items() if key in known)
    whole = (cost + seconds[given]) / own
    rest = [f"{key} {value:.1f}" for key, value in seconds.items() if key not in {*known, given, "logits"}]
    return [
        f"CPU seconds: the model's own forward pass {own:.1f}; AS and SI, its part of that pass included, {cost:.1f}",
        f"({cost / own:.2f} times), SI given the token {seconds[given]:.1f} ({whole:.2f} in all), " + ", ".join(rest),
    ]


def _value(at: Mapping[tuple[str, str, str], Row], *key: str) -> float | None:
    row = at.get(key)  # type: ignore[call-overload]
    return row.value if row else None


def _z(row: Row | None) -> str:
    if row is None or row.z is None:
        return "–"
    return f"{row.z:.0f}" if abs(row.z) < 10_000 else f"{row.z:.0e}"
