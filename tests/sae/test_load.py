"""Coders are read from directories, runs and many at once; what cannot be read exactly is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import slms
from slms.sae.coders import build_coder
from slms.sae.config import CoderConfig
from slms.sae.export import Provenance, fold_scale, save
from slms.sae.load import load

D, S = 6, 32
WHENCE = Provenance("stories-1m", "blocks.3.hook_resid_post")


def make(kind, seed=0):
    """A coder with every parameter away from its initial value, ready for inference."""
    torch.manual_seed(seed)
    coder = build_coder(CoderConfig(kind=kind, d_sae=S, k=4), D)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter).abs())
    return coder.eval()


def test_one_coder_from_its_directory_and_from_a_run(tmp_path):
    coder, x = make("topk"), torch.randn(9, D)
    save(coder, tmp_path / "run" / "saes" / "residual.3", WHENCE)
    (tmp_path / "run" / "config.yaml").write_text("seed_everything: 0\n")
    for path in (tmp_path / "run", tmp_path / "run" / "saes", str(tmp_path / "run" / "saes" / "residual.3")):
        back = slms.load_coder(path)
        assert torch.equal(back(x), coder(x))
        assert back.metadata["hook_name"] == "blocks.3.hook_resid_post"
        assert not back.training


def test_many_coders(tmp_path):
    for run in "ab":
        for name in ("one", run):
            save(make("topk", seed=ord(run)), tmp_path / run / name, WHENCE)
    with pytest.raises(ValueError, match=r"holds 2 coders \(a, one\)"):
        slms.load_coder(tmp_path / "a")
    found = slms.load_many([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "one"])
    assert set(found) == {"a", "b", str(tmp_path / "a" / "one"), str(tmp_path / "b" / "one")}
    assert torch.equal(found["b"].W_dec, make("topk", seed=ord("b")).W_dec)
    assert set(slms.load_many(tmp_path / "a")) == {"a", "one"}


def test_nothing_to_read(tmp_path):
    for read in (slms.load_coder, slms.load_many):
        with pytest.raises(ValueError, match=r"absent/cfg\.json: no such file"):
            read(tmp_path / "absent")
        (tmp_path / "config.yaml").touch()
        with pytest.raises(ValueError, match="a run without saes/"):
            read(tmp_path)


def test_threshold_as_saelens_stored_it_before_6_48(tmp_path):
    coder, x = make("jump_relu"), torch.randn(20, D)
    save(coder, tmp_path, WHENCE)
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    tensors["log_threshold"] = tensors.pop("threshold").log()
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    torch.testing.assert_close(load(tmp_path).encode(x), coder.encode(x))


def test_topk_rescaled_by_decoder_norms(tmp_path):
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
    back = load(tmp_path)
    torch.testing.assert_close(back.encode(x), acts)
    torch.testing.assert_close(back(x), acts / norms @ coder.W_dec + coder.b_dec)
    torch.testing.assert_close(back.reconstruct(x), back(x))
    folded = fold_scale(back, 1.0)
    torch.testing.assert_close(folded.encode(x), acts)
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(S))
    save(back, tmp_path / "again", WHENCE)
    assert torch.equal(load(tmp_path / "again")(x), back(x))


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
    with pytest.raises(ValueError, match="no JSON"):
        load(tmp_path)
