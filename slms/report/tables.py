"""The closing table on the terminal: plain text of at most 100 columns, the same on a screen and in a file."""

import math
from collections.abc import Sequence

from slms.measure.schema import Estimate, Loss, Results
from slms.report.reading import families, visible

WIDTH = 100
FAMILIES_A_TABLE = 3
INDENT = "  "
WHOLE = "whole model, head included"


def closing_table(results: Results) -> str:
    """What the run showed: loss against the dense base, compute, and purity and SI by layer with their nulls."""
    blocks = [_heading(results), _loss_block(results), _compute_block(results), _layer_block(results)]
    return "\n\n".join(block for block in blocks if block)


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, indent: str = INDENT) -> str:
    """Columns padded to their widest cell, the first `left` flush left, the rest flush right; a rule under the head.

    >>> print(text_table(["run", "nats"], [["dense", "1.51"], ["routed", "1.5300"]], indent=""))
    run       nats
    ------  ------
    dense     1.51
    routed  1.5300
    """
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    lines = []
    for row in [head, rule, *rows]:
        cells = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def number(value: float | None, digits: int = 3) -> str:
    """A value for a cell; "–" where it was not measured."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """An interval for a cell; `n/a` where a single document leaves none."""
    if low is None or high is None:
        return ""
    return f"[{low:.{digits}f}, {high:.{digits}f}]" if math.isfinite(low) and math.isfinite(high) else "n/a"


def amount(value: float) -> str:
    """A count in at most five characters.

    >>> amount(950), amount(4_915_200), amount(2.6e11)
    ('950', '4.92M', '260G')
    """
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _heading(results: Results) -> str:
    run, base, data = results.run, results.base, results.data
    first = f"{run.name}: {run.role} run, {amount(run.tokens_trained)} tokens in {run.steps} steps, {run.seconds:.0f} s"
    asked = f" (asked for {base.asked})" if base.asked and base.asked != base.name else ""
    second = f"base {base.name} from {base.source}{asked}, data {data.name} from {data.source}"
    return "\n".join(line[:WIDTH] for line in (first, second))


def _loss_block(results: Results) -> str:
    losses = results.losses
    rows = [_loss_row("dense base", losses.dense)] if losses.dense else []
    rows.append(
        _loss_row(f"{results.run.role}, trained" if results.run.role == "dense" else results.run.role, losses.model)
    )
    if (difference := losses.difference) is not None:
        ratio = [math.exp(x) if x is not None else None for x in (difference.nats, difference.low, difference.high)]
        rows.append([
            "difference", f"{difference.nats:+.4f}", _signed(difference.low, difference.high),
            f"×{ratio[0]:.4f}", interval(ratio[1], ratio[2], 4), str(difference.documents), "",
        ])  # fmt: skip
    head = ["validation loss", "nats/token", "95 % interval", "perplexity", "95 % interval", "documents", "tokens"]
    return text_table(head, rows)


def _loss_row(name: str, loss: Loss) -> list[str]:
    low, high = (math.exp(x) if x is not None else None for x in (loss.low, loss.high))
    digits = 3 if loss.perplexity < 100 else 0
    return [
        name, f"{loss.nats:.4f}", interval(loss.low, loss.high, 4), f"{loss.perplexity:.{digits}f}",
        interval(low, high, digits), str(loss.documents), amount(loss.tokens),
    ]  # fmt: skip


def _signed(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:+.4f}, {high:+.4f}]"


def _compute_block(results: Results) -> str:
    compute = results.compute
    if compute is None:
        return ""
    head = ["FLOPs per token", "dense", results.run.role, "saved"]
    if results.run.role == "dense":
        return text_table(head[:2], [["MLPs", amount(compute.mlp_dense)], [WHOLE, amount(compute.total_dense)]])
    rows = [
        ["MLPs, router included", amount(compute.mlp_dense), amount(compute.mlp_routed), share(compute.mlp_saved)],
        [WHOLE, amount(compute.total_dense), amount(compute.total_routed), share(compute.total_saved)],
    ]  # fmt: skip
    table = text_table(head, rows)
    return f"{table}\n{INDENT}active fraction: {share(compute.active_fraction)} of all MLP neurons execute"


def _layer_block(results: Results) -> str:
    if not results.layers:
        return ""
    head = ["layer", "purity", "± 95 %", "null ± sd", "z", "entropy", "legacy purity", "used", "max load"]
    rows = []
    for layer in results.layers:
        heaviest = None if layer.max_violation is None else layer.max_violation + 1
        rows.append([
            f"L{layer.layer}", number(layer.purity.value), _half(layer.purity), _null(layer.purity), _z(layer.purity),
            number(layer.entropy.value, 2), number(layer.purity_legacy.value), _percent(layer.utilization.value),
            f"{number(heaviest, 1)}×",
        ])  # fmt: skip
    tables = [text_table(head, rows)]
    names = families(results)
    tables += [_si_table(results, names[i : i + FAMILIES_A_TABLE]) for i in range(0, len(names), FAMILIES_A_TABLE)]
    note = "null: labels permuted (domain: by document), subtracted; z: value / sd; max load: over the mean"
    return "\n\n".join(tables) + f"\n{INDENT}{note}"


def _si_table(results: Results, names: list[str]) -> str:
    head = ["layer"]
    for name in names:
        head += [f"SI {visible(name, 11)}", "null ± sd", "z"]
    rows = []
    for layer in results.layers:
        row = [f"L{layer.layer}"]
        for name in names:
            estimate = layer.si.get(name, Estimate())
            row += [number(estimate.value), _null(estimate), _z(estimate)]
        rows.append(row)
    covered = [f"{visible(n, 11)} {share(results.labels[n].coverage)}" for n in names if n in results.labels]
    return text_table(head, rows) + (f"\n{INDENT}tokens with a label: {', '.join(covered)}" if covered else "")


def _half(estimate: Estimate) -> str:
    return "" if estimate.low is None or estimate.high is None else f"{(estimate.high - estimate.low) / 2:.3f}"


def _null(estimate: Estimate) -> str:
    """Mean ± sd, the sd with one digit that counts: 0.012±.0004, 0.012±4e-5."""
    if estimate.null_mean is None or estimate.null_sd is None:
        return number(estimate.null_mean)
    sd = estimate.null_sd
    small = f"{sd:.0e}".replace("e-0", "e-") if 0 < sd < 5e-4 else f"{sd:.4f}".removeprefix("0")
    return f"{estimate.null_mean:.3f}±{small}"


def _z(estimate: Estimate) -> str:
    return "–" if estimate.z is None else (f"{estimate.z:.0f}" if abs(estimate.z) < 10_000 else f"{estimate.z:.0e}")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
