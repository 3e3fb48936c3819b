"""Shows the frontier of dynamic-k execution as rows, as tables and in one closing line."""

import math

from slms.measure.frontier import NEAR_DENSE, Frontier, Speedup, best_point, break_evens, by_rule
from slms.metrics.functional import Interval
from slms.report.tables import amount, interval, number, share, text_table

QUALITY = "subject rule target density nats low high perplexity ratio ratio_low ratio_high".split()
FLOPS = "mlp_flops mlp_share model_flops model_share".split()
SPEED = "tokens_per_second dense_tokens_per_second model_speedup mlp_speedup".split()
COLUMNS = (*QUALITY, *FLOPS, *(f"{direction}_{name}" for direction in ("decode", "prefill") for name in SPEED))


def rows(frontier: Frontier) -> list[list[object]]:
    """The points as rows of `COLUMNS`."""
    table: list[list[object]] = []
    for p in frontier.points:
        speeds = [value for speed in (p.decode, p.prefill) for value in (speed or (None,) * 4)]
        loss, ratio = (p.loss.value, p.loss.low, p.loss.high, math.exp(p.loss.value)), p.ratio[:3]
        flops = p.mlp_flops, p.mlp_flops / frontier.mlp_flops, p.model_flops, p.model_flops / frontier.model_flops
        table.append([p.subject, p.rule, p.target, p.density, *loss, *ratio, *flops, *speeds])
    return table


def frontier_json(frontier: Frontier) -> dict[str, object]:
    """The frontier as the content of `dynamick.json`."""
    best = best_point(frontier)
    points = zip(rows(frontier), frontier.points, strict=True)
    return {
        "device": frontier.device,
        "dense_loss": frontier.dense._asdict(),
        "mlp_flops": frontier.mlp_flops,
        "model_flops": frontier.model_flops,
        "points": [dict(zip(COLUMNS, row, strict=True)) | {"densities": point.densities} for row, point in points],
        "break_even": break_evens(frontier),
        "best": None if best is None else [best.name, best.density],
        "closing": closing_line(frontier),
    }


def frontier_table(frontier: Frontier) -> str:
    """Tables of every point's quality and FLOPs, then of its speed, then of where each rule breaks even."""
    dense = frontier.dense
    flops = amount(frontier.mlp_flops), "", amount(frontier.model_flops), ""
    quality = [["dense", "1.000", *_perplexity(dense), "", "", *flops]]
    speed = []
    for p in frontier.points:
        ratio = f"{p.ratio.value:.4f}", interval(p.ratio.low, p.ratio.high, 4)
        mlps = amount(p.mlp_flops), share(p.mlp_flops / frontier.mlp_flops)
        model = amount(p.model_flops), share(p.model_flops / frontier.model_flops)
        quality.append([p.name, f"{p.density:.3f}", *_perplexity(p.loss), *ratio, *mlps, *model])
        if p.decode and p.prefill:
            speed.append([p.name, f"{p.density:.3f}", *_speed_cells(p.decode), *_speed_cells(p.prefill)])
    head = ["rule", "density", "perplexity", "95 %", "× dense", "95 %", "MLPs", "", "model", ""]
    text = "FLOPs per token of the MLPs and of the whole model, head included\n\n" + text_table(head, quality)
    if speed:
        head = ["rule", "density", "decode tok/s", "dense", "MLPs", "model", "prefill tok/s", "dense", "MLPs", "model"]
        text += f"\n\nin turns with the dense model on {frontier.device}, one sequence\n\n" + text_table(head, speed)
        text += "\n\n" + break_even_lines(frontier)
    return text


def _perplexity(nats: Interval) -> tuple[str, str]:
    return f"{math.exp(nats.value):.3f}", interval(math.exp(nats.low), math.exp(nats.high))


def _speed_cells(speed: Speedup) -> list[str]:
    rates = [f"{rate:,.0f}" for rate in (speed.tokens_per_second, speed.dense_tokens_per_second)]
    return [*rates, f"{number(speed.mlp, 2)}×", f"{number(speed.model, 2)}×"]


def break_even_lines(frontier: Frontier) -> str:
    """One line for each direction: the density below which the MLPs are faster than dense ones."""
    lines, found = [], break_evens(frontier)
    for direction in ("decode", "prefill"):
        cells = []
        for name, group in by_rule(frontier.points):
            speeds = [speed.mlp for p in group if (speed := getattr(p, direction)) is not None]
            value = found[name][direction]
            verdict = "faster" if speeds and min(speeds) >= 1 else "slower" if speeds and max(speeds) < 1 else "mixed"
            cells.append(f"{name} {number(value, 2) if value is not None else verdict}")
        lines.append(f"break-even density of the MLPs, {direction}: {', '.join(cells)}")
    return "\n".join(lines) + "\n(faster, slower: at every density measured)"


def closing_line(frontier: Frontier) -> str:
    """A line that names the best rule that costs at most 1 % perplexity, or says that there is none."""
    best = best_point(frontier)
    if best is not None and best.decode is not None and best.prefill is not None:
        return (
            f"at ≤ 1 % perplexity the best is {best.name} at density {best.density:.2f}: MLP {best.decode.mlp:.1f}×, "
            f"model {best.decode.model:.1f}× in decode (prefill {best.prefill.mlp:.1f}×, {best.prefill.model:.1f}×) "
            f"on {frontier.device}"
        )
    near = [p for p in frontier.points if p.model_flops < frontier.model_flops and p.ratio.value <= NEAR_DENSE]
    if not near:
        best = min((p for p in frontier.points if p.density < 1), key=lambda p: p.ratio.value, default=None)
        tail = f"; the nearest is {best.name} at density {best.density:.2f}, ×{best.ratio.value:.3f}" if best else ""
        return f"at ≤ 1 % perplexity nothing saves FLOPs{tail}"
    least = min(near, key=lambda p: p.model_flops)
    line = (
        f"at ≤ 1 % perplexity {least.name} at density {least.density:.2f} saves most FLOPs "
        f"({share(1 - least.model_flops / frontier.model_flops)} of the model)"
    )
    timed = [p for p in near if p.decode]
    return f"{line}, but none is faster than the dense model in decode on {frontier.device}" if timed else line
