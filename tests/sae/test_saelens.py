"""Our directories in SAELens and SAELens's in ours: the same features and reconstructions to the last bit, fp32."""

import pytest
import torch

from slms.sae.coders import build_coder
from slms.sae.config import CoderConfig
from slms.sae.export import FORMAT, Provenance, architecture, fold_scale, save
from slms.sae.load import load

sae_lens = pytest.importorskip("sae_lens", reason="SAELens is not a dependency; pip install sae-lens beside slms")
get_sae_training_class = pytest.importorskip("sae_lens.registry").get_sae_training_class

D, S, N = 48, 384, 70
# kind, output dimension of a transcoder, skip connection → the architecture's name in SAELens
CASES = {
    ("relu", None, False): "standard",
    ("topk", None, False): "topk",
    ("batch_topk", None, False): "jumprelu",
    ("matryoshka", None, False): "jumprelu",
    ("jump_relu", None, False): "jumprelu",
    ("gated", None, False): "gated",
    ("relu", D, False): "transcoder",
    ("relu", 24, True): "skip_transcoder",
    ("batch_topk", D, False): "jumprelu_transcoder",
    ("jump_relu", 24, True): "jumprelu_skip_transcoder",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}")
@torch.no_grad()
def test_differ_by_nothing(case, tmp_path):
    torch.manual_seed(0)
    kind, d_out, skip = case
    coder = build_coder(CoderConfig(kind=kind, d_sae=S, k=8, skip=skip), D, d_out).eval()
    for parameter in coder.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    if hasattr(coder, "threshold"):
        coder.threshold.copy_(torch.full_like(coder.threshold, 0.3))
    coder.unit_norm = not coder.config.fixed_k  # as in training
    coder = fold_scale(coder, 0.37, None if d_out is None else 0.9)
    x = 2 * torch.randn(N, D)
    save(coder, tmp_path / "ours", Provenance("stories-1m", "blocks.3.hook_resid_post"))
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "ours")
    assert theirs.cfg.architecture() == architecture(coder) == CASES[case]
    assert torch.equal(theirs.encode(x), coder.encode(x))
    assert torch.equal(theirs(x), coder(x))
    theirs.save_model(tmp_path / "theirs")
    back = load(tmp_path / "theirs")
    assert torch.equal(back.encode(x), coder.encode(x))
    assert torch.equal(back(x), coder(x))
    assert 0.005 < (coder.encode(x) > 0).float().mean() < 0.95


TRAINED = {"standard": {}, "gated": {}, "topk": {"k": 8}, "jumprelu": {}, "batchtopk": {"k": 8}}
TRAINED["matryoshka_batchtopk"] = {"k": 8, "matryoshka_widths": [64, 128, S]}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", TRAINED)
@torch.no_grad()
def test_what_saelens_trained_differs_by_nothing(name, dtype, tmp_path):
    """TopK rescales by decoder norms unless told otherwise; a threshold stays fp32 beside bfloat16 weights."""
    torch.manual_seed(0)
    kind, config = get_sae_training_class(name)
    trained = kind(config(d_in=D, d_sae=S, dtype=dtype, device="cpu", **TRAINED[name]))
    for parameter in trained.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    for threshold in ("threshold", "topk_threshold"):
        if hasattr(trained, threshold):
            getattr(trained, threshold).data.fill_(0.3)
    trained.save_inference_model(tmp_path / "inference")
    trained.save_model(tmp_path / "training")
    # SAELens itself opens no training directory of these two kinds for inference
    for place in ["inference"] + ["training"] * ("batchtopk" not in name):
        theirs, ours = sae_lens.SAE.load_from_disk(tmp_path / place), load(tmp_path / place)
        x = 2 * torch.randn(N, D).to(theirs.dtype)
        assert torch.equal(theirs.encode(x), ours.encode(x))
        assert torch.equal(theirs(x), ours(x))
        assert 0.005 < (ours.encode(x) > 0).float().mean() < 0.95


def test_newest_version_is_the_documented_one():
    assert sae_lens.__version__ == FORMAT
