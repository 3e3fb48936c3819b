"""SAELens directories come back bit for bit as they were written, and damaged ones are refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from slms.sae.coders import build_coder
from slms.sae.config import CoderConfig
from slms.sae.export import Provenance, architecture, fold_scale, load, save

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
    back, metadata = load(tmp_path)
    assert torch.equal(back.encode(x), coder.encode(x))
    assert torch.equal(back(x), coder(x))
    assert (coder.encode(x) > 0).float().mean() > 0.02
    assert metadata["hook_name"] == "blocks.3.hook_resid_post"


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
    assert config.get("k") == (4 if name == "topk" else None)
    assert config.get("d_out") == d_out
    assert config["metadata"]["sae_lens_version"] >= "6.0.0"
    assert config["metadata"]["model_name"] == "stories-1m"
    assert config["metadata"]["context_size"] == 64


@pytest.mark.parametrize("kind", ["batch_topk", "matryoshka"])
def test_batch_topk_leaves_as_jumprelu_with_equal_features(kind, tmp_path):
    coder, x = make(kind), torch.randn(40, D)
    save(coder, tmp_path, WHENCE)
    back = load(tmp_path).coder
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


def test_topk_rescaled_by_decoder_norms_is_folded(tmp_path):
    coder, x = make("topk"), torch.randn(20, D)
    with torch.no_grad():
        coder.W_dec.mul_(torch.linspace(0.5, 2.0, S)[:, None])
    save(coder, tmp_path, WHENCE)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"rescale_acts_by_decoder_norm": True}))
    norms = coder.W_dec.norm(dim=1)
    pre = ((x - coder.b_dec) @ coder.W_enc.T + coder.b_enc) * norms
    top = pre.topk(4, dim=1)
    acts = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    back = load(tmp_path).coder
    torch.testing.assert_close(back.encode(x), acts)
    torch.testing.assert_close(back(x), acts / norms @ coder.W_dec + coder.b_dec)


def test_no_architecture_for_it():
    for kind in ("topk", "gated"):
        with pytest.raises(ValueError, match="no such transcoder"):
            architecture(make(kind, 5))


def test_no_threshold_yet(tmp_path):
    coder = build_coder(CoderConfig(d_sae=S, k=4), D)
    with pytest.raises(ValueError, match="no threshold yet"):
        save(coder, tmp_path / "new", WHENCE)
    assert not (tmp_path / "new").exists()


def _drop(key):
    return lambda config, tensors: config.pop(key)


BROKEN = {
    "architecture": (_drop("architecture"), "'architecture' is missing"),
    "d_sae": (_drop("d_sae"), "'d_sae' is missing"),
    "k": (_drop("k"), "'k' is missing"),
    "k above d_sae": (
        lambda config, tensors: config.update(k=S + 1),
        rf"k is {S + 1}; it must be at most d_sae \({S}\)",
    ),
    "no k": (lambda config, tensors: config.update(k=0), "k is 0; it must be a whole number above 0"),
    "tensor": (lambda config, tensors: tensors.pop("b_enc"), "tensor 'b_enc' is missing"),
    "extra": (lambda config, tensors: tensors.update(scaling_factor=torch.ones(S)), "'scaling_factor' is none of"),
    "shape": (lambda config, tensors: config.update(d_in=D + 1), r"W_enc has shape \(6, 32\)"),
    "unknown": (
        lambda config, tensors: config.update(architecture="temporal"),
        "'temporal'; it must be one of standard",
    ),
    "norm": (lambda config, tensors: config.update(normalize_activations="layer_norm"), "'layer_norm'"),
    "dtype": (lambda config, tensors: config.update(dtype="int64"), "dtype is 'int64'"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_refuses_what_it_cannot_read_exactly(what, tmp_path):
    damage, message = BROKEN[what]
    save(make("topk"), tmp_path, WHENCE)
    config, tensors = json.loads((tmp_path / "cfg.json").read_text()), load_file(tmp_path / "sae_weights.safetensors")
    damage(config, tensors)
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_truncated_files(tmp_path):
    with pytest.raises(ValueError, match=r"cfg\.json: no such file"):
        load(tmp_path)
    save(make("topk"), tmp_path, WHENCE)
    weights = tmp_path / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ValueError, match="missing or damaged"):
        load(tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        load(tmp_path)
