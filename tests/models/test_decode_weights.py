"""Where `speed_up` puts the weights: the same parameters, in huge pages, some of them interleaved."""

import copy
import mmap
import pickle

import pytest
import torch

from slms.kernels.cpu.gate_rows import interleaved
from slms.models.anatomy import find_mlps
from slms.models.decode_step import speed_up
from tests.models.decoding import decode, pair

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def test_weights_stay_the_same_parameters(tiny, tokens):
    model = tiny("llama")
    model.lm_head.weight = model.model.embed_tokens.weight
    before = {name: (id(p), p.clone()) for name, p in model.named_parameters(remove_duplicate=False)}
    with torch.inference_mode():
        speed_up(model)
    moved = dict(model.named_parameters(remove_duplicate=False))
    assert {name: id(p) for name, p in moved.items()} == {name: kept[0] for name, kept in before.items()}
    assert all(torch.equal(p, before[name][1]) for name, p in moved.items())
    places = [p.data_ptr() for p in moved.values()]
    speed_up(model)
    assert places == [p.data_ptr() for p in moved.values()]
    with torch.enable_grad():
        model.train()(tokens(1, 4), labels=tokens(1, 4)).loss.backward()
        torch.optim.SGD(model.parameters(), 1.0).step()
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, before["model.layers.0.mlp.up_proj.weight"][1])


@torch.no_grad()
@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no huge pages to ask for")
def test_weights_lie_in_huge_pages_once(tiny, tokens, monkeypatch):
    model = tiny("llama")
    before = [p.data_ptr() for p in model.parameters()]
    copied = copy.deepcopy(speed_up(model))
    moved = [p.data_ptr() for p in model.parameters()]
    assert not set(before) & set(moved)
    unmoved = [p.data_ptr() for p in copied.parameters()]
    assert not set(unmoved) & {p.data_ptr() for p in speed_up(copied).parameters()}  # a copy is moved too

    def refused(*arguments, **options):
        raise OSError("no memory")

    monkeypatch.setattr(mmap, "mmap", refused)
    other = tiny("llama")
    before = [p.data_ptr() for p in other.parameters()]
    assert before == [p.data_ptr() for p in speed_up(other).parameters()]
    decode(other.eval(), tokens(1, 6))


@torch.no_grad()
def test_other_types_are_not_interleaved(tiny, tokens):
    stock, _ = pair(tiny, tokens, "llama", "neurons")
    half = speed_up(copy.deepcopy(stock).bfloat16())
    assert all(p.dtype == torch.bfloat16 and p.is_contiguous() for p in half.parameters())
    half(tokens(1, 4))


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "beside"),
    [("neurons", ("W_in", "W_out")), ("twice", None), ("thresholds", None), ("screened", ("W_gate", "W_in"))],
)
def test_what_is_read_together_is_interleaved(tiny, tokens, kind, beside):
    _, fast = pair(tiny, tokens, "llama", kind)
    for mlp in find_mlps(fast).values():
        pairs = [("W_in", "W_out"), ("W_gate", "W_in")]
        lie = [names for names in pairs if interleaved(*(getattr(mlp, name) for name in names))]
        assert lie == ([] if beside is None else [beside])
        assert (mlp.screened is not None) == (kind == "screened")


@torch.no_grad()
def test_a_trained_gate_matrix_gets_a_new_copy(tiny, tokens, ran):
    stock, fast = pair(tiny, tokens, "llama", "screened")
    ids = tokens(1, 12)
    before = decode(fast, ids)
    copies = [mlp._prepared[1].copy for mlp in find_mlps(fast).values()]
    assert None not in copies
    for model in (stock, fast):
        for mlp in find_mlps(model).values():
            mlp.W_gate.mul_(torch.linspace(0.2, 3, len(mlp.W_gate))[:, None])
    torch.testing.assert_close(decode(fast, ids), decode(stock, ids), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(decode(fast, ids), before) and all(ran)
    now = [mlp._prepared[1].copy for mlp in find_mlps(fast).values()]
    assert all(new is not old and not torch.equal(new.step, old.step) for new, old in zip(now, copies, strict=True))


@torch.no_grad()
def test_interleaved_weights_stay_parameters(tiny, tokens, ran, tmp_path):
    """They are the same objects; a change is seen; a file, a copy and a pickle hold the same numbers."""
    stock, fast = pair(tiny, tokens, "llama", "neurons")
    mlp, ids = find_mlps(fast)[0], tokens(1, 12)
    assert interleaved(mlp.W_in, mlp.W_out) and {id(p) for p in fast.parameters()} >= {id(mlp.W_in), id(mlp.W_out)}
    before = decode(fast, ids)
    for model in (stock, fast):
        find_mlps(model)[0].W_in.mul_(1.5)
    torch.testing.assert_close(decode(fast, ids), decode(stock, ids), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(decode(fast, ids), before) and all(ran)
    assert all(tensor.is_contiguous() for tensor in fast.state_dict().values())
    fast.save_pretrained(tmp_path / "saved")
    again = type(fast).from_pretrained(tmp_path / "saved").eval()
    for other in (again, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        torch.testing.assert_close(decode(other, ids), decode(stock, ids), atol=1e-5, rtol=1e-5)
    fast.load_state_dict({name: tensor * 0 for name, tensor in fast.state_dict().items()})
    assert not mlp.W_out.any() and interleaved(mlp.W_in, mlp.W_out)
