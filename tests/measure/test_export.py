"""An export is opened by a process of its own, and what computes something else is told apart."""

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from safetensors.torch import load_file, save_file

from slms.measure.export import Comparison, compare_export
from slms.models.stock_weights import write_stock
from tests.models.test_stock import SHAPE
from tests.models.test_stock_weights import IDS, routed


def test_what_computes_something_else_or_lacks_a_weight_is_told(tmp_path):
    """`tests/commands/test_export.py` has an export that computes the same."""
    model = routed(hf.LlamaConfig(**SHAPE))
    write_stock(model, "mixtral", tmp_path / "new")
    weights = load_file(tmp_path / "new" / "model.safetensors")
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    damaged = weights | {name: weights[name] / 2}
    save_file(damaged, tmp_path / "new" / "model.safetensors", {"format": "pt"})
    found = compare_export(model, tmp_path / "new", IDS)
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "new").eval()
    assert not found.equal and found.tokens == 40
    with torch.no_grad():
        logits = [net(IDS).logits for net in (model, again)]
    nats = [F.cross_entropy(y[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).exp().item() for y in logits]
    assert [found.perplexity, found.exported] == pytest.approx(nats, rel=1e-5)
    assert found.largest == pytest.approx((logits[0] - logits[1]).abs().max().item(), rel=1e-4)
    assert found.argmax == pytest.approx((logits[0].argmax(-1) == logits[1].argmax(-1)).float().mean().item())

    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "new" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"cannot read the export: 1 missing keys, as model\.norm\.weight"):
        compare_export(model, tmp_path / "new", IDS)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("exported", "argmax", "equal"),
    [(10.0009, 1.0, True), (10.0011, 1.0, False), (9.9989, 1.0, False), (10.0, 0.9985, False), (10.0, 0.9991, True)],
)
def test_equal_is_within_a_ten_thousandth_and_nearly_every_token(exported, argmax, equal):
    assert Comparison(1000, 10.0, exported, argmax, 0.0).equal is equal
