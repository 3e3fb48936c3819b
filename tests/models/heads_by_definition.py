"""Routed heads by their definition, one head at a time, for tests."""

import torch

from slms.models.anatomy import find_attentions
from slms.models.routed import record_routes
from slms.models.routed_heads import RoutedHeads, head_shape


def rotated(x: torch.Tensor, base: float, size: int) -> torch.Tensor:
    """The rotary embedding of x [t, e] in its first `size` dimensions (an odd one counts as a pair), pair by pair."""
    y, pairs, t = x.clone(), -(-size // 2), torch.arange(len(x))
    for i in range(pairs):
        angle = t / base ** (2 * i / size)
        a, b = x[:, i], x[:, i + pairs]
        y[:, i] = a * angle.cos() - b * angle.sin()
        y[:, i + pairs] = b * angle.cos() + a * angle.sin()
    return y


def by_definition(family: str, config, heads: RoutedHeads, x: torch.Tensor, gates: torch.Tensor, chosen: torch.Tensor):
    """The output [t, d] of one attention at inputs x [t, d], with gates and choices [t, h]; loops over heads and rows.

    It reads the weights as each family stores them.
    """
    a, (d, h, kv, e), t = heads.attention, head_shape(config), len(x)
    at = heads.layer_index
    if family == "gpt2":
        q, k, v = (x @ a.c_attn.weight + a.c_attn.bias).split(d, 1)
    elif family == "gpt_neox":
        qkv = (x @ a.query_key_value.weight.T + a.query_key_value.bias).view(t, h, 3, e)
        q, k, v = (qkv[:, :, i].reshape(t, -1) for i in range(3))
    else:
        q, k, v = (p(x) for p in (a.q_proj, a.k_proj, a.v_proj))
    y = torch.zeros(t, d, dtype=x.dtype)
    kinds = getattr(config, "layer_types", None)
    for head in range(h):
        mine = head // (h // kv)
        qh, kh, vh = q[:, head * e :][:, :e], k[:, mine * e :][:, :e], v[:, mine * e :][:, :e]
        if hasattr(a, "q_norm"):
            qh, kh = a.q_norm(qh), a.k_norm(kh)
        if family not in ("gpt_neo", "gpt2"):
            rope = config.rope_parameters
            if family == "gemma3_text":
                rope = rope[kinds[at]]
            size = int(e * rope.get("partial_rotary_factor", 1.0))
            qh, kh = (rotated(z, rope["rope_theta"], size) for z in (qh, kh))
        scale = 1.0 if family == "gpt_neo" else e**-0.5
        if family in ("gemma2", "gemma3_text"):
            scale = config.query_pre_attn_scalar**-0.5
        window = t
        if family == "gpt_neo" and config.attention_layers[at] == "local":
            window = config.window_size
        elif family == "mistral" or (kinds and kinds[at] == "sliding_attention"):
            window = config.sliding_window
        for i in range(t):
            first = max(0, i - window + 1)
            scores = kh[first : i + 1] @ qh[i] * scale
            if getattr(config, "attn_logit_softcapping", None):
                scores = config.attn_logit_softcapping * (scores / config.attn_logit_softcapping).tanh()
            o = scores.softmax(0) @ vh[first : i + 1]
            y[i] += gates[i, head] * o @ heads.W_O()[head * e : (head + 1) * e]
            if heads.mean_out is not None and not chosen[i, head]:
                y[i] += heads.mean_out[head]
    return y if heads.out.bias is None else y + heads.out.bias


def seen(model, at: int, ids: torch.Tensor):
    """The input and output [t, d] of a layer's attention on one block, and the routes there."""
    found = {}
    heads = find_attentions(model)[at]

    def keep(_, args, kwargs, output):
        found["x"], found["y"] = (args[0] if args else kwargs["hidden_states"])[0], output[0][0]

    handle = heads.register_forward_hook(keep, with_kwargs=True)
    with record_routes(model) as routes, torch.no_grad():
        model(ids, use_cache=False)
    handle.remove()
    return found["x"], found["y"], routes[f"L{at}.attn"]
