"""Shows the frontier of dynamic-k execution as rows, as tables and in one closing line."""

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from slms.measure.frontier import (
    AS_RUN,
    DIRECTIONS,
    NEAR_DENSE,
    PREFILL,
    Frontier,
    Point,
    best_point,
    break_evens,
    dense_places,
    of_rules,
    unbeaten,
    under_rule_alone,
)
from slms.measure.gguf import Timed
from slms.measure.rows import COLUMNS, MODEL
from slms.report.tables import amount, cell, interval, number, share, text_table

POINT_COLUMNS = (*Point._fields[:-1], *COLUMNS)
SPEEDS = ("tokens_per_second", "dense_tokens_per_second", "mlp_speedup", "model_speedup")
ABOUT = """\
scored: the second half of each block; its first half is the prompt, dense under rules that run prompts dense
FLOPs per token of the MLPs and of the whole model, head included; prompt: of the model, in prompts
"""
WHY_DENSE = "at this density the rule decodes slower than dense (break-even measured at SmolLM2's shape)"
FORCE = "the other row of that density is the rule's quality alone; --execution rule times it"


def point_lines(frontier: Frontier) -> list[tuple[Any, ...]]:
    """The numbers of the dense model and of every point as lines of `POINT_COLUMNS`."""
    return [(*p[:-1], *astuple(row)) for p in (frontier.dense, *frontier.points) for row in p.rows]


def frontier_json(frontier: Frontier) -> dict[str, object]:
    """The frontier as the content of `dynamick.json`."""
    best = best_point(frontier)
    return {
        "device": frontier.device,
        "rows": [dict(zip(POINT_COLUMNS, line, strict=True)) for line in point_lines(frontier)],
        "break_even": break_evens(frontier),
        "runs_dense": [
            {"rule": p.rule, "target": p.target, "places": dense_places(p), "why": WHY_DENSE}
            for p in frontier.points
            if p.subject == AS_RUN
        ],
        "best": None if best is None else [best.name, best.value("density")],
        "unbeaten": {way: [p.label for p in unbeaten(frontier, way)] for way in DIRECTIONS},
        "closing": closing_line(frontier),
    }


def llama_cpp_json(timed: Sequence[Timed]) -> list[dict[str, object]]:
    """The speeds in llama.cpp as the content of `dynamick.json`."""
    return [{**one._asdict(), "times": one.times and one.times._asdict()} for one in timed]


def llama_cpp_lines(timed: Sequence[Timed]) -> str:
    """One line for each model and type: its speed in llama.cpp, or why there is none; then command and build.

    The speeds of models after the first are also given in times those of the first. A reason that holds for all types
    of a model, or for all models, is given once.
    """
    reasons = {one.why_not for one in timed}
    if len(reasons) == 1 and (why := reasons.pop()) is not None:
        return why if why.startswith("llama.cpp") else f"llama.cpp: {why}"
    first = {one.type: one.times for one in timed if one.model == timed[0].model}
    lines = []
    for one in timed:
        types = [other.type for other in timed if other.model == one.model and other.why_not == one.why_not]
        if one.why_not is not None:
            if one.type == types[0]:
                lines.append(f"llama.cpp, {one.model}, {' and '.join(types)}: {one.why_not}")
            continue
        speed = one.times and f"decode {one.times.decode:.1f} tok/s, prefill {one.times.prompt:.1f}"
        if one.model != timed[0].model and one.times is not None and (dense := first[one.type]) is not None:
            ratios = one.times.decode / dense.decode, one.times.prompt / dense.prompt
            speed = f"{speed}; × {timed[0].model}: {ratios[0]:.2f} and {ratios[1]:.2f}"
        lines.append(f"llama.cpp, {one.model}, {one.type}: {speed}")
    made = next((one.times for one in timed if one.times is not None), None)
    return "\n".join(lines if made is None else [*lines, f"  {made.command}", f"  {made.build}"])


def frontier_table(frontier: Frontier) -> str:
    """Tables of every point's quality and FLOPs, then of its speed, then of where each rule breaks even."""
    quality, speed = [], []
    for p in (frontier.dense, *frontier.points):
        name = p.label, cell(p.row("density"))
        ratio = p.row("ratio")
        near = cell(p.row("perplexity")), cell(ratio), interval(ratio.low, ratio.high, 4)
        flops = [(amount(p.value(f"{of}_flops")), cell(p.row(f"{of}_share"))) for of in ("mlp", "model")]
        quality.append([*name, *near, *flops[0], *flops[1], cell(p.row("model_share", PREFILL))])
        if p.timed:
            speed.append([*name, *(cell(p.row(metric, way)) for way in DIRECTIONS for metric in SPEEDS)])
    head = ["rule", "density", "perplexity", "× dense", "95 %", "MLPs", "", "model", "", "prompt"]
    text = f"{ABOUT}\n{text_table(head, quality)}"
    if speed:
        head = ["rule", "density", "decode tok/s", "dense", "MLPs", "model", "prefill tok/s", "dense", "MLPs", "model"]
        text += f"\n\nin turns with the dense model on {frontier.device}, one sequence\n\n" + text_table(head, speed)
        text += "\n\n" + break_even_lines(frontier)
        text += "\n" + "\n".join(unbeaten_lines(frontier, direction) for direction in DIRECTIONS)
    return "\n".join([text, *dense_lines(frontier)])


def dense_lines(frontier: Frontier) -> list[str]:
    """One line for each point at which MLPs ran dense: how many, and why."""
    lines = []
    for p in frontier.points:
        if p.subject == AS_RUN:
            assert p.target is not None
            n = sum(row.metric == "density" and row.place != MODEL for row in p.rows)
            lines.append(f"{p.rule} at {p.target:g}, {AS_RUN}: {len(dense_places(p))} of {n} MLPs run dense")
    return [*lines, WHY_DENSE, FORCE] if lines else []


def break_even_lines(frontier: Frontier) -> str:
    """One line for each direction: the density below which the MLPs are faster than dense ones."""
    lines, found = [], break_evens(frontier)
    for direction in DIRECTIONS:
        cells = []
        for name, group in of_rules(frontier):
            speeds = [p.value("mlp_speedup", direction) for p in under_rule_alone(group)]
            value = found[name][direction]
            if not speeds:
                verdict = "not timed"
            else:
                verdict = "faster" if min(speeds) >= 1 else "slower" if max(speeds) < 1 else "mixed"
            cells.append(f"{name} {number(value, 2) if value is not None else verdict}")
        lines.append(f"break-even density of the MLPs, {direction}: {', '.join(cells)}")
    return "\n".join(lines) + "\n(faster, slower: at every density measured)"


def unbeaten_lines(frontier: Frontier, direction: str) -> str:
    """A line for each point that no other beats in both speed and perplexity, slowest first, under a heading."""
    lines = [f"{direction}: no other point is as fast at as low a perplexity as"]
    for p in unbeaten(frontier, direction):
        at = "" if p.target is None else f" at {p.target:g}"
        numbers = f"perplexity ×{p.value('ratio'):.4f}, {p.value('model_speedup', direction):.2f}× as fast"
        lines.append("  the dense model" if p is frontier.dense else f"  {p.label}{at}: {numbers}")
    return "\n".join(lines)


def closing_line(frontier: Frontier) -> str:
    """A line that names the best rule that costs at most 1 % perplexity, or says that there is none."""
    best = best_point(frontier)
    if best is not None:
        fast = [f"{best.value(f'{of}_speedup', way):.1f}×" for way in DIRECTIONS for of in ("mlp", "model")]
        return (
            f"at ≤ 1 % perplexity the best is {best.name} at density {best.value('density'):.2f}: MLP {fast[0]}, "
            f"model {fast[1]} in decode (prefill {fast[2]}, {fast[3]}) on {frontier.device}"
        )
    near = [p for p in frontier.points if p.value("model_share") < 1 and p.value("ratio") <= NEAR_DENSE]
    if not near:
        best = min((p for p in frontier.points if p.value("density") < 1), key=lambda p: p.value("ratio"), default=None)
        where = best and f"{best.name} at density {best.value('density'):.2f}, ×{best.value('ratio'):.3f}"
        tail = f"; the nearest is {where}" if where else ""
        return f"at ≤ 1 % perplexity nothing saves FLOPs{tail}"
    least = min(near, key=lambda p: p.value("model_share"))
    line = (
        f"at ≤ 1 % perplexity {least.name} at density {least.value('density'):.2f} saves most FLOPs "
        f"({share(1 - least.value('model_share'))} of the model)"
    )
    timed = any(p.timed for p in frontier.points)
    return f"{line}, but none is faster than the dense model in decode on {frontier.device}" if timed else line
