"""A transcoder set computes what our coders do, by the format's definition and, where installed, by circuit-tracer."""

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn.functional import linear

from slms.models.mlp_norm import Affine
from slms.sae.circuit_tracer import check_set, fvu, layer_of, mean_threshold, thresholded, write_set
from slms.sae.coders import build_coder
from slms.sae.config import CoderConfig

D, S, N, K = 12, 40, 60, 5


def make(kind, skip=False, seed=0, d_sae=S):
    torch.manual_seed(seed)
    coder = build_coder(CoderConfig(kind=kind, d_sae=d_sae, k=K, skip=skip), D, D)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter).abs())
        if kind == "batch_topk":
            coder.threshold.fill_(0.25)
    return coder.eval().requires_grad_(False)


def written(kind, skip, directory, n_layers=2):
    """Two layers' coders with their thresholds and norms, and what the set reads."""
    coders = {i: make(kind, skip, seed=i) for i in range(n_layers)}
    normed = torch.randn(N, D)
    norms = {i: Affine(1 + 0.3 * torch.randn(D), 0.2 * torch.randn(D)) for i in coders}
    inputs = {i: normed * norms[i].weight + norms[i].bias for i in coders}
    thresholds = {i: mean_threshold(coders[i], inputs[i]) for i in coders} if kind == "topk" else {}
    write_set(coders, dict.fromkeys(coders, "x"), n_layers, thresholds, norms, directory, "tiny")
    return coders, inputs, thresholds, normed


CASES = [(kind, skip) for kind in ("relu", "jump_relu", "batch_topk", "topk") for skip in (False, True)]


@pytest.mark.parametrize(("kind", "skip"), CASES)
def test_computes_the_same_by_the_format_s_definition(kind, skip, tmp_path):
    coders, inputs, thresholds, normed = written(kind, skip, tmp_path)
    for i, coder in coders.items():
        t = load_file(tmp_path / f"layer_{i}.safetensors")
        pre = linear(normed, t["W_enc"], t["b_enc"])
        limit = t.get("activation_function.threshold", torch.zeros(S))  # without one the loader takes ReLU
        acts = pre * (pre > limit)
        output = acts @ t["W_dec"] + t["b_dec"] + (normed @ t["W_skip"].T if skip else 0)
        ours = thresholded(coder, inputs[i], thresholds[i]) if kind == "topk" else coder.encode(inputs[i])
        torch.testing.assert_close(acts, ours, rtol=1e-4, atol=1e-5)
        wanted = coder.decode(ours) + (inputs[i] @ coder.W_skip.T if skip else 0)
        torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-5)
        assert ("activation_function.threshold" in t) is (kind != "relu")
        assert limit.shape == (S,)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (config["model_kind"], config["model_name"]) == ("transcoder_set", "tiny")
    assert (config["feature_input_hook"], config["feature_output_hook"]) == ("ln2.hook_normalized", "hook_mlp_out")
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "layer_0.safetensors", "layer_1.safetensors"}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(("kind", "skip"), CASES)
def test_opens_in_circuit_tracer(kind, skip, lazy, tmp_path):
    reason = "circuit-tracer is not a dependency; pip install --no-deps circuit-tracer, then nnsight, beside slms"
    loader = pytest.importorskip("circuit_tracer.transcoder.single_layer_transcoder", reason=reason)
    coders, inputs, thresholds, normed = written(kind, skip, tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    paths = {i: str(tmp_path / f"layer_{i}.safetensors") for i in coders}
    hooks = {key: config[key] for key in ("feature_input_hook", "feature_output_hook")}
    device = torch.device("cpu")
    found = loader.load_transcoder_set(paths, "x", **hooks, device=device, lazy_encoder=lazy, lazy_decoder=lazy)
    acts = found.encode(normed.expand(2, -1, -1))
    output = found.decode(acts, normed.expand(2, -1, -1))
    for i, coder in coders.items():
        ours = thresholded(coder, inputs[i], thresholds[i]) if kind == "topk" else coder.encode(inputs[i])
        torch.testing.assert_close(acts[i], ours, rtol=1e-4, atol=1e-5)
        wanted = coder.decode(ours) + (inputs[i] @ coder.W_skip.T if skip else 0)
        torch.testing.assert_close(output[i], wanted, rtol=1e-4, atol=1e-5)
        assert (acts[i] > 0).sum() > 0


def test_the_threshold_of_topk_uses_k_a_token():
    coder, x = make("topk"), torch.randn(N, D)
    acts = thresholded(coder, x, mean_threshold(coder, x))
    assert (acts > 0).sum() == N * K
    assert fvu(x.mean(0), x) == pytest.approx(1)


def test_what_makes_no_set():
    names = {0: "a", 1: "b"}
    with pytest.raises(ValueError, match=r"layer 1 has no transcoder \(of 2 layers: 0\)"):
        check_set({0: make("topk")}, names, 2)
    with pytest.raises(ValueError, match="layer 0 has no transcoder"):
        check_set({}, names, 1)
    for other, message in (
        (make("gated"), "b: circuit-tracer has no gated"),
        (make("topk", d_sae=41), "b: 41 latents, but a has 40"),
        (make("topk", skip=True), "either all transcoders of a set have `skip`, or none"),
    ):
        with pytest.raises(ValueError, match=message):
            check_set({0: make("topk"), 1: other}, names, 2)


def test_which_coders_are_transcoders_of_an_mlp():
    assert layer_of("mlp_in.3", "mlp_out.3") == 3
    for pair in (("mlp_in.3", "mlp_out.4"), ("residual.3", "residual.3"), ("residual.3", "mlp_out.3")):
        assert layer_of(*pair) is None
