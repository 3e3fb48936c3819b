"""All code that relies on undocumented parts of transformers: look here first if a new release breaks something.

CACHE                   the name of the cache of keys and values, renamed in 5.24
SDPASelfAttention       GPT-Neo's attention: forward, and the names of its layers and buffers
UnpaddedGPTNeoModel     GPT-Neo's stack: forward, and that it passes on a four-dimensional mask unchanged
forget_renamed_weights  what from_pretrained notes for save_pretrained
compute_again           the method that turns gradient checkpointing on
uses_sdpa               where a configuration keeps which attention it computes
own_gguf_progress       the bar of the reader of GGUF files, which no option turns off
LeavesOut               the method that sets a module's first weights

An override names only the arguments that it uses and passes on the others unchanged. If it meets an argument that it
does not know, transformers' own class runs: slower, but never wrong. A test fails if that happens to a plain call.

Shapes: b batch, t queries, s keys, d model; heads and head size as h and e.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoModel, GPTNeoSelfAttention

from slms.models.small_heads import serves, small_head_attention
from slms.progress import progress

CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What a causal language model calls its cache of keys and values, given or returned: renamed in transformers 5.24."""

SERVED = ("attention_mask", "layer_past", "use_cache")
"""The arguments that SDPASelfAttention computes with; transformers' own class computes with any other."""


def uses_sdpa(config: Any) -> bool:
    """Whether a model of this configuration computes attention by PyTorch's fused function."""
    return config._attn_implementation == "sdpa"


@contextlib.contextmanager
def own_gguf_progress() -> Iterator[None]:
    """Show how far transformers has read a GGUF file as other long work is shown, not by its own bar."""
    from transformers import modeling_gguf_pytorch_utils as reader

    bar = getattr(reader, "tqdm", None)
    if bar is None:
        yield
        return
    reader.tqdm = lambda tensors, **_: progress(tensors, "converting")
    try:
        yield
    finally:
        reader.tqdm = bar


class LeavesOut(PreTrainedModel):
    """A model that sets the first weights of its modules but those that it leaves out."""

    def left_out(self, module: nn.Module) -> bool:
        """Whether the module's weights stay as they are."""
        return False

    def _init_weights(self, module: nn.Module, **kwargs: Any) -> None:
        if not self.left_out(module):
            super()._init_weights(module, **kwargs)


class SDPASelfAttention(GPTNeoSelfAttention):
    """GPT-Neo's attention, softmax(q kᵀ + mask) v without the usual 1/√e; transformers has only an eager form of it.

    It runs through ``scaled_dot_product_attention``, or through ``small_heads`` for the tiny heads of the TinyStories
    models on the CPU. A local layer sees the last ``window_size`` keys. It equals the eager form within 1e-6 in fp32.
    """

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        attention_mask, layer_past = kwargs.get("attention_mask"), kwargs.get("layer_past")
        other = any(value is not None and value is not False for name, value in kwargs.items() if name not in SERVED)
        if args or other:  # the caller wants weights, or a later transformers has a new argument; its class knows both
            return super().forward(hidden_states, *args, **kwargs)
        dropout = self.attn_dropout.p if self.training else 0.0
        q, k, v = (
            rearrange(project(hidden_states), "b t (h e) -> b t h e", h=self.num_heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if layer_past is None and not dropout and _unpadded(attention_mask) and serves(q):
            y = small_head_attention(q, k, v, self.config.window_size if self.attention_type == "local" else q.shape[1])
        else:
            q, k, v = (rearrange(x, "b t h e -> b h t e") for x in (q, k, v))
            if layer_past is not None:
                k, v = layer_past.update(k, v, self.layer_id)
            mask, causal = self._restrictions(q.shape[2], k.shape[2], attention_mask)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=1.0)
            y = rearrange(y, "b h t e -> b t h e")
        return self.resid_dropout(self.out_proj(rearrange(y, "b t h e -> b t (h e)"))), None

    def _restrictions(self, t: int, s: int, attention_mask: Tensor | None) -> tuple[Tensor | None, bool]:
        """Return the mask to add, and whether only causality restricts; ``attention_mask`` [b, 1, t, s] is additive."""
        unpadded = _unpadded(attention_mask)
        window = self.attention_type == "local" and s > self.config.window_size
        if unpadded and not window and t in (1, s):
            return None, t > 1
        allowed = self.bias[:, :, s - t : s, :s]
        if attention_mask is None or unpadded:
            return allowed, False
        return torch.where(allowed, attention_mask, torch.finfo(attention_mask.dtype).min), False


def _unpadded(attention_mask: Tensor | None) -> bool:
    """Return whether a mask only restricts to causality; UnpaddedGPTNeoModel passes a mask of a single zero."""
    return attention_mask is None or attention_mask.numel() == 1


class UnpaddedGPTNeoModel(GPTNeoModel):
    """A GPT-Neo that builds no [b, 1, t, t] mask when it is given none.

    Its attention layers know causality and window themselves. It passes a mask of one zero, which adds nothing, because
    transformers passes on a four-dimensional mask unchanged.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = len(args) > 1 or any(kwargs.get(name) is not None for name in ("attention_mask", "position_ids"))
        if not given:
            kwargs["attention_mask"] = self.wpe.weight.new_zeros(1, 1, 1, 1)
        return super().forward(*args, **kwargs)


def forget_renamed_weights(model: PreTrainedModel) -> None:
    """Let `save_pretrained` write the weights under the names that they have in `model`.

    Otherwise `save_pretrained` would undo what `from_pretrained` renamed on loading (Pythia's embed_out → lm_head).
    Only dense classes know the old names, so a routed class could not load them again.
    """
    vars(model).pop("_weight_conversions", None)


def compute_again(model: PreTrainedModel) -> None:
    """Let every layer compute its inside again in the backward pass; transformers 5.24 renamed the method."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
