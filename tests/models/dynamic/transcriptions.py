"""The published rules, transcribed from their authors' code onto a transformers Llama, without a line of ours.

Every rule acts on the second half of each sequence; the first half is a dense prompt, as TEAL's `SparsifyFn` does it. A
rule is a function of a model's MLP, the inputs [b, t, d] that it got from calibration text, and a density; it returns
what replaces the MLP's output. Sources, read in November 2026: FasterDecoding/TEAL (utils/utils.py, teal/greedyopt.py),
ScalingIntelligence/CATS (experiments/models/sparse_silu/ugly_utils.py), hdong920/GRIFFIN (src/griffin/llama.py),
microsoft/wina (utils/utils.py, wina/mlp.py), thunlp/SparsingLaw (src/model_utils.py), bartwojcik/D2DMoE
(architectures/moe/moefication.py).

Shapes: b blocks, t position, d model, f neurons.
"""

from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.nn.functional as F

MATRICES = ("gate", "up", "down")


@contextmanager
def outputs_replaced(model, functions):
    """While open, layer i's MLP returns functions[i](x)."""
    with ExitStack() as stack:
        for layer, function in zip(model.model.layers, functions, strict=True):
            handle = layer.mlp.register_forward_hook(lambda _, args, out, function=function: function(args[0]))
            stack.callback(handle.remove)
        yield


def mlp_inputs(model, ids):
    """By layer, the inputs [b, t, d] of the dense model's MLPs."""
    found = [[] for _ in model.model.layers]
    handles = [
        layer.mlp.register_forward_hook(lambda _, args, out, i=i: found[i].append(args[0]))
        for i, layer in enumerate(model.model.layers)
    ]
    for part in ids.split(16):
        model(part)
    for handle in handles:
        handle.remove()
    return [torch.cat(parts) for parts in found]


def perplexity(model, ids, functions=None):
    """Perplexity of the predictions made in the second half of each sequence [b, t]."""
    with outputs_replaced(model, functions) if functions else ExitStack():
        logits = torch.cat([model(part).logits for part in ids.split(16)])
    half = ids.shape[1] // 2
    return F.cross_entropy(logits[:, half:-1].flatten(0, 1), ids[:, half + 1 :].flatten()).exp().item()


def hidden(mlp, x):
    return mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)


def second_half(apply, x):
    """Apply to the second half of the positions, as SparsifyFn.forward."""
    half = x.size(1) // 2
    return torch.cat((x[:, :-half, :], apply(x[:, -half:, :])), dim=1)


def sparse_inputs(mlp, sparsify):
    """An MLP whose three matrices see sparsified inputs; sparsify[name](v) is v with zeros."""

    def forward(x):
        h = mlp.act_fn(mlp.gate_proj(sparsify["gate"](x))) * mlp.up_proj(sparsify["up"](x))
        return mlp.down_proj(sparsify["down"](h))

    return forward


def allocated(mlp, x, sparsifier, density, step=0.05, last=0.25):
    """greedyopt.py among the three matrices of one MLP: the sparsities nearest to the target in its table of steps.

    The errors are of the last quarter of the positions, so the first half, which stays dense, need not be computed.
    """
    x = x[:, x.shape[1] // 2 :]
    target, start = mlp(x), int(x.shape[1] * (1 - 2 * last))

    def error(sparsities):
        new = sparse_inputs(mlp, {name: sparsifier(name, s) for name, s in sparsities.items()})(x)
        return torch.norm(target[:, start:] - new[:, start:], dim=1).mean()

    sparsities, table = dict.fromkeys(MATRICES, 0.0), []
    while sum(sparsities.values()) / 3 < 0.9:
        best, chosen = float("inf"), None
        for name in MATRICES:
            if sparsities[name] >= 1:
                continue
            e = error({**sparsities, name: sparsities[name] + step})
            if e < best:
                best, chosen = e, name
        sparsities = {**sparsities, chosen: sparsities[chosen] + step}
        table.append((sum(sparsities.values()) / 3, sparsities))
        if table[-1][0] > 1 - density + step:
            break
    return min(table, key=lambda row: abs(row[0] - (1 - density)))[1]


def teal(mlps, xs, density, greedy=True, signed=False):
    """A threshold on |input| for each matrix, where the share 1 − density of calibration's |inputs| is below it (§4.1).

    signed: the code's icdf(.5 + sparsity / 2) of the signed inputs, which it assumes to be symmetric.
    """

    def sparsifier(ordered, name, sparsity):
        values, q = ordered[name], 0.5 + sparsity / 2 if signed else sparsity
        threshold = 0.0 if sparsity == 0.0 else values[min(round(q * len(values)), len(values) - 1)].item()
        return partial(second_half, lambda part: part.abs().gt(threshold) * part)

    def ordered(v):
        return (v if signed else v.abs()).flatten().sort().values

    samples = [{"gate": x, "up": x, "down": hidden(mlp, x)} for mlp, x in zip(mlps, xs, strict=True)]
    samples = [{name: ordered(v) for name, v in sample.items()} for sample in samples]
    return by_matrix(mlps, xs, [partial(sparsifier, sample) for sample in samples], density, greedy)


def wina(mlps, xs, density, greedy=True):
    """The top k of |input| · column norm, by token and matrix (mask_by topk, the default; without --transform)."""

    def sparsifier(mlp, name, sparsity):
        norms = getattr(mlp, f"{name}_proj").weight.norm(dim=0)

        def apply(part):
            k = int(part.size(-1) * (1 - sparsity) + 1e-9)  # sums of .05 are not exact
            top = (part * norms).abs().topk(k).indices
            return part * torch.zeros_like(part).scatter(-1, top, 1)

        return partial(second_half, apply)

    return by_matrix(mlps, xs, [partial(sparsifier, mlp) for mlp in mlps], density, greedy)


def by_matrix(mlps, xs, sparsifiers, density, greedy):
    """MLPs whose matrices see inputs sparsified by their shares: greedy ones, or all alike."""
    functions = []
    for mlp, x, sparsifier in zip(mlps, xs, sparsifiers, strict=True):
        s = allocated(mlp, x, sparsifier, density) if greedy else dict.fromkeys(MATRICES, 1 - density)
        functions.append(sparse_inputs(mlp, {name: sparsifier(name, s[name]) for name in MATRICES}))
    return functions


def gates(mlp, x):
    return mlp.act_fn(mlp.gate_proj(x))


def cats_quantiles(mlps, xs, density):
    """By layer, the least t with F(t) ≥ 1 − density for the distribution F of |act(gate)| (the paper's equation)."""
    ordered = [gates(mlp, x).abs().flatten().sort().values for mlp, x in zip(mlps, xs, strict=True)]
    return [values[round((1 - density) * len(values))] for values in ordered]


def cats_histogram(mlps, xs, density):
    """By layer, the same in the code: the lower edge of the quantile's bin, of 997 bins of .002 and two open ones."""
    infinity, found = torch.tensor([torch.inf]), []
    bins = torch.cat([-infinity, torch.linspace(-1, 1, 998), infinity])
    for mlp, x in zip(mlps, xs, strict=True):
        counts = torch.histogram(gates(mlp, x).abs(), bins=bins)[0]
        found.append(bins[torch.searchsorted((counts / counts.sum()).cumsum(0), 1 - density, side="right")])
    return found


def cats(mlps, xs, density, calibrate=cats_quantiles):
    """Gates with |act| at most the layer's threshold become 0."""

    def forward(mlp, threshold, x):
        kept = second_half(lambda act: torch.where(act.abs() <= threshold, 0.0, act), gates(mlp, x))
        return mlp.down_proj(kept * mlp.up_proj(x))

    return [partial(forward, mlp, t) for mlp, t in zip(mlps, calibrate(mlps, xs, density), strict=True)]


def griffin(mlps, xs, density):
    """A dense prompt; then the neurons of largest ‖h / ‖h‖‖ over it, cut out into a smaller MLP."""

    def forward(mlp, x):
        h, half = hidden(mlp, x), x.shape[1] // 2
        k, outputs = int(h.shape[-1] * density), [mlp.down_proj(h[:, :half])]
        statistic = (h[:, :half] / h[:, :half].norm(dim=-1).unsqueeze(-1)).norm(dim=1)
        rows = []
        for sequence, indices in zip(x[:, half:], torch.topk(statistic, k, dim=-1).indices, strict=True):
            gate, up = mlp.gate_proj.weight[indices], mlp.up_proj.weight[indices]
            small = mlp.act_fn(sequence @ gate.T) * (sequence @ up.T)
            rows.append(small @ mlp.down_proj.weight[:, indices].T)
        return torch.cat([*outputs, torch.stack(rows)], 1)

    return [lambda x, mlp=mlp: forward(mlp, x) for mlp in mlps]


def cett_thresholds(mlp, x, cett):
    """calc_thresholds_given_cett for one layer: a binary search among linearly spaced candidates."""
    weight, a = mlp.down_proj.weight, hidden(mlp, x).flatten(0, 1)
    norm = a.abs() * weight.norm(dim=0)
    count = 65536
    most = norm.view(-1)[:: max(norm.numel() // count, 1)].quantile(0.99)
    thresholds, y = torch.linspace(norm.min().item(), most.item(), count), (a @ weight.T).norm(dim=-1)
    left, right = 0, len(thresholds) - 1
    while left < right:
        middle = (left + right) // 2
        tiny = a.clone()
        tiny[norm > thresholds[middle]] = 0.0
        if torch.mean((tiny @ weight.T).norm(dim=-1) / y) > cett:
            right = middle
        else:
            left = middle + 1
    return thresholds[left - 1], norm


def cett(mlps, xs, density):
    """The same CETT in every layer; the authors bisect it for a perplexity, here for the mean activation ratio."""
    low, high = 0.0, 1.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        found = [cett_thresholds(mlp, x, middle) for mlp, x in zip(mlps, xs, strict=True)]
        ratio = sum((norm >= t).float().mean() for t, norm in found) / len(found)
        low, high = (middle, high) if ratio > density else (low, middle)
    functions = []
    for mlp, x in zip(mlps, xs, strict=True):
        threshold = cett_thresholds(mlp, x, (low + high) / 2)[0] / mlp.down_proj.weight.norm(dim=0)

        def forward(x, mlp=mlp, threshold=threshold):
            return mlp.down_proj(second_half(lambda h: h.masked_fill(h.abs() < threshold, 0.0), hidden(mlp, x)))

        functions.append(forward)
    return functions


def dynk_max(norms, tau):
    """D2DMoE: experts of predicted norm at least (1 − τ) of the token's largest."""
    most = norms.max(dim=-1, keepdim=True).values
    chosen = torch.zeros_like(norms)
    chosen[norms >= most * (1.0 - tau)] = 1.0
    return chosen


def d2dmoe(mlp, router, norm_shift, norm_scale, offsets, tau):
    """The experts that `dynk_max` chooses by the norms that a router predicts, summed without weights.

    Their routers end in abs; one that was fitted without it predicts 0 where it is negative. The MLP's neurons are in
    the experts' order: expert p has those from offsets[p] to offsets[p + 1].
    """
    sizes = torch.tensor(offsets).diff()

    def forward(x):
        experts = dynk_max((norm_shift + norm_scale * router(x)).clamp_min(0), tau)
        return mlp.down_proj(hidden(mlp, x) * experts.repeat_interleave(sizes, dim=-1))

    return forward


PUBLISHED = {"teal": teal, "wina": wina, "cats": cats, "griffin": griffin, "cett": cett}
