"""SAELens directories come back bit for bit as they were written, and damaged ones are refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

from slms.sae.coders import build_coder
from slms.sae.config import CoderConfig
from slms.sae.export import Provenance, architecture, fold_scale, save
from slms.sae.load import load

D, S = 6, 32
WHENCE = Provenance(
    "stories-1m", "blocks.3.hook_resid_post", "transformer.h.3", context_size=64, dataset_path="stories"
)
# architecture → (kind, d_out, skip), every one that a directory can hold, and the tensors that SAELens loads strictly
CASES = {
    "standard": ("relu", None, False, "W_dec W_enc b_dec b_enc"),
    "topk": ("topk", None, False, "W_dec W_enc b_dec b_enc"),
    "jumprelu": ("jump_relu", None, False, "W_dec W_enc b_dec b_enc threshold"),
    "gated": ("gated", None, False, "W_dec W_enc b_dec b_gate b_mag r_mag"),
    "transcoder": ("relu", 5, False, "W_dec W_enc b_dec b_enc"),
    "skip_transcoder": ("relu", 5, True, "W_dec W_enc W_skip b_dec b_enc"),
    "jumprelu_transcoder": ("batch_topk", 5, False, "W_dec W_enc b_dec b_enc threshold"),
    "jumprelu_skip_transcoder": ("jump_relu", 5, True, "W_dec W_enc W_skip b_dec b_enc threshold"),
    "topk_transcoder": ("topk", 5, False, "W_dec W_enc b_dec b_enc"),
    "topk_skip_transcoder": ("topk", 5, True, "W_dec W_enc W_skip b_dec b_enc"),
    "gated_transcoder": ("gated", 5, False, "W_dec W_enc b_dec b_gate b_mag r_mag"),
    "gated_skip_transcoder": ("gated", 5, True, "W_dec W_enc W_skip b_dec b_gate b_mag r_mag"),
}


def make(kind, d_out=None, skip=False, seed=0):
    """A coder with every parameter away from its initial value, ready for inference."""
    torch.manual_seed(seed)
    coder = build_coder(CoderConfig(kind=kind, d_sae=S, k=4, skip=skip), D, d_out)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter).abs())
        if kind in ("batch_topk", "matryoshka"):
            coder.threshold.fill_(0.25)
    return coder.eval()


@pytest.mark.parametrize("name", CASES)
def test_round_trip_is_exact(name, tmp_path):
    kind, d_out, skip, _ = CASES[name]
    coder, x = make(kind, d_out, skip), torch.randn(40, D)
    assert architecture(coder) == name
    save(coder, tmp_path, WHENCE)
    back = load(tmp_path)
    assert torch.equal(back.encode(x), coder.encode(x))
    assert torch.equal(back(x), coder(x))
    assert (coder.encode(x) > 0).float().mean() > 0.02
    assert back.metadata["hook_name"] == "blocks.3.hook_resid_post"


@pytest.mark.parametrize("name", CASES)
def test_files_hold_what_the_format_asks_for(name, tmp_path):
    kind, d_out, skip, tensors = CASES[name]
    coder = make(kind, d_out, skip)
    save(coder, tmp_path, WHENCE)
    written = load_file(tmp_path / "sae_weights.safetensors")
    assert " ".join(sorted(written)) == tensors
    assert torch.equal(written["W_enc"], coder.W_enc.T)
    assert written["W_dec"].shape == (S, d_out or D)
    if "threshold" in written:
        assert written["threshold"].shape == (S,)
    if skip:
        assert written["W_skip"].shape == (d_out, D)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert (config["architecture"], config["d_in"], config["d_sae"], config["dtype"]) == (name, D, S, "float32")
    assert config["normalize_activations"] == "none"
    assert config["apply_b_dec_to_input"] is (d_out is None)
    assert config.get("k") == (4 if kind == "topk" else None)
    assert config.get("d_out") == d_out
    assert config["metadata"]["sae_lens_version"] >= "6.0.0"
    assert config["metadata"]["model_name"] == "stories-1m"
    assert config["metadata"]["context_size"] == 64


@pytest.mark.parametrize("kind", ["batch_topk", "matryoshka"])
def test_batch_topk_leaves_as_jumprelu_with_equal_features(kind, tmp_path):
    coder, x = make(kind), torch.randn(40, D)
    save(coder, tmp_path, WHENCE)
    back = load(tmp_path)
    assert back.config.kind == "jump_relu"
    assert torch.equal(back.encode(x), coder.encode(x))
    assert torch.equal(back(x), coder(x))


@pytest.mark.parametrize("name", CASES)
def test_folded_scale(name):
    kind, d_out, skip, _ = CASES[name]
    coder, x = make(kind, d_out, skip).double(), torch.randn(20, D, dtype=torch.float64)
    scale_in, scale_out = (0.3, 0.3) if d_out is None else (0.3, 1.7)
    folded = fold_scale(coder, scale_in, scale_out)
    torch.testing.assert_close(folded(x), coder(scale_in * x) / scale_out, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(folded.encode(x), coder.encode(scale_in * x) / scale_out, rtol=1e-12, atol=1e-12)
    assert torch.equal(folded.W_dec, coder.W_dec)


def test_no_threshold_yet(tmp_path):
    coder = build_coder(CoderConfig(d_sae=S, k=4), D)
    with pytest.raises(ValueError, match="no threshold yet"):
        save(coder, tmp_path / "new", WHENCE)
    assert not (tmp_path / "new").exists()
