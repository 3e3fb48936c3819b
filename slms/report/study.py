"""Table and figure of a study, from `slms.measure.study`."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slms.measure.study import FEWEST, PROMPT, ROUTED, Arm, StudyRun
from slms.report.palette import COLOURS, GREY, PAGE, caption, styled
from slms.report.tables import amount, number, share, text_table

STUDY_COLUMNS = StudyRun._fields


def study_table(runs: Sequence[StudyRun], arms: Sequence[Arm]) -> str:
    """The arms and the verdicts as text for the terminal."""
    head = [
        "arm",
        "seeds",
        "MLP FLOPs",
        "",
        "neurons",
        "decode",
        "prompt",
        "nats",
        "− routed",
        "95 % interval",
        "× base",
        "KL",
        "verdict",
    ]
    rows = []
    for arm in arms:
        flops = next((run.mlp_flops for run in runs if run.arm == arm.arm and run.mlp_flops is not None), None)
        cost = "–" if flops is None else amount(flops), share(arm.mlp_share), share(arm.active_fraction)
        loss = _times(arm.decode_speedup, 2), _times(arm.prompt_speedup, 2), number(arm.nats, 4)
        apart = ["", ""] if arm.minus_routed is None else [f"{arm.minus_routed:+.4f}", _interval(arm)]
        rows.append(
            [
                arm.arm,
                str(len(arm.seeds)),
                *cost,
                *loss,
                *apart,
                _times(arm.over_base, 4),
                number(arm.kl, 4),
                arm.verdict,
            ]
        )
    notes = [
        "  neurons: share of all MLP neurons that execute for a token",
        f"  decode, prompt: tokens/s over the dense base's, here, of one token and of a prompt of {PROMPT}",
        "  nats: mean over seeds; interval: over seeds and documents, in pairs",
        "  KL: of the model's predictions from the base's, in nats per token, if the base taught",
        f"  verdict: the rule in slms/measure/study.py; it needs {FEWEST} seeds and an interval without 0",
    ]
    return "\n".join([text_table(head, rows, left=1), *notes])


def _times(value: float | None, digits: int) -> str:
    return "–" if value is None else f"×{value:.{digits}f}"


def _interval(arm: Arm) -> str:
    if arm.low is None or arm.high is None or not math.isfinite(arm.low):
        return ""
    return f"[{arm.low:+.4f}, {arm.high:+.4f}]"


@styled
def study_figure(name: str, runs: Sequence[StudyRun], arms: Sequence[Arm]) -> Figure:
    """Draw each arm's difference to the routed one with its interval and seeds, and what it costs to run."""
    figure = Figure(figsize=(PAGE, 1.3 + 0.27 * len(arms)))
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    at = dict(zip((arm.arm for arm in arms), range(len(arms))[::-1], strict=True))  # the first arm on top
    _loss_panel(left, runs, arms, at)
    _cost_panel(right, arms, at)
    n = max(len(arm.seeds) for arm in arms)
    note = (
        f"{n} seed{'s' * (n > 1)}; dots: one seed each; bars: 95 % intervals over "
        f"{'seeds and documents' if n > 1 else 'documents'}, in pairs; right of 0 the arm loses more than routing"
    )
    caption(figure, f"Routing against its controls: {name}", note)
    return figure


def _loss_panel(axes: Axes, runs: Sequence[StudyRun], arms: Sequence[Arm], at: dict[str, int]) -> None:
    routed = {run.seed: run.nats for run in runs if run.arm == ROUTED}
    for arm in arms:
        colour = COLOURS[0] if arm.verdict in ("", "not shown") or "seed" in arm.verdict else COLOURS[1]
        y = at[arm.arm]
        if arm.low is not None and arm.high is not None and math.isfinite(arm.low):
            axes.hlines(y, arm.low, arm.high, color=colour, linewidth=2)
        if arm.minus_routed is not None:
            axes.plot(arm.minus_routed, y, "o", color=colour, markersize=5)
        seeds = [run.nats - routed[run.seed] for run in runs if run.arm == arm.arm and run.seed in routed]
        if arm.arm != ROUTED:
            axes.plot(seeds, [y - 0.25] * len(seeds), "o", color=GREY, markersize=2)
        elif routed:
            mean = sum(routed.values()) / len(routed)
            axes.plot([x - mean for x in routed.values()], [y] * len(routed), "o", color=GREY, markersize=2)
    axes.axvline(0, color=GREY, ls="--", linewidth=0.6)
    axes.set(title="a   Validation loss − routed", xlabel="nats per token")
    axes.set_yticks(list(at.values()), list(at))
    axes.set_ylim(-0.6, len(arms) - 0.4)


def _cost_panel(axes: Axes, arms: Sequence[Arm], at: dict[str, int]) -> None:
    shares = {
        "MLP FLOPs": [arm.mlp_share for arm in arms],
        "decode": [arm.decode_speedup and 1 / arm.decode_speedup for arm in arms],
        "prompt": [arm.prompt_speedup and 1 / arm.prompt_speedup for arm in arms],
    }
    colours = COLOURS[0], COLOURS[2], COLOURS[3]
    for i, (label, values) in enumerate(shares.items()):
        known = [(at[arm.arm], value) for arm, value in zip(arms, values, strict=True) if value is not None]
        if known:
            y, x = [y + 0.26 * (1 - i) for y, _ in known], [100 * value for _, value in known]
            axes.barh(y, x, 0.24, color=colours[i], label=label)
    axes.axvline(100, color=GREY, ls="--", linewidth=0.6)
    axes.set(title="b   Cost", xlabel="% of the dense base's FLOPs, or time")
    axes.set_yticks(list(at.values()), [""] * len(at))
    axes.set_ylim(-0.6, len(arms) - 0.4)
    spacing = {"handlelength": 0.8, "handletextpad": 0.3, "columnspacing": 0.7}
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, borderpad=0, borderaxespad=0.4, **spacing)
