"""Captures against the activations themselves, killed and gone on with, and refused where they do not fit."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from slms.models.capture import ABOUT, META, Text, capture, read_capture, windows
from slms.models.sites import Site, read_sites


@pytest.fixture(scope="module")
def model():
    return neox(0)


def neox(seed):
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    return GPTNeoXForCausalLM(config).eval()


NAMES = {0: "gpt_neox.layers.0.mlp", 2: "gpt_neox.layers.2.mlp"}


def texts(n=30, seed=0):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 45, (n,), generator=g).tolist()
    return [
        Text(torch.randint(0, 50, (k,), generator=g).tolist(), i, "a" if i < 20 else "b") for i, k in enumerate(lengths)
    ]


def write(model, directory, site="neurons", source=None, about=None, **options):
    source = windows(texts() if source is None else source, 32)
    return capture(
        model,
        source,
        directory,
        NAMES,
        site,
        about or {"corpus": "x"},
        special=[7],
        shard_tokens=100,
        batch_size=4,
        **options,
    )


@pytest.mark.parametrize(
    ("site", "kind", "width"), [("neurons", "neurons", 24), ("output", "mlp_out", 16), ("residual", "residual", 16)]
)
def test_every_token_has_the_activation_of_its_window(model, tmp_path, site, kind, width):
    n = write(model, tmp_path, site)
    shards = list(read_capture(tmp_path, model))
    whole = {key: torch.cat([shard.tensors[key] for shard in shards]) for key in shards[0].tensors}
    assert n == len(whole["token_ids"]) == sum(len(text.ids) for text in texts())
    at = 0
    for text in windows(texts(), 32):
        if not text.ids:
            continue
        rows, ids = slice(at, at + len(text.ids)), torch.tensor([text.ids])
        assert whole["token_ids"][rows].tolist() == text.ids and set(whole["doc_ids"][rows].tolist()) == {text.doc_id}
        assert whole["positions"][rows].tolist() == list(range(len(text.ids)))
        assert whole["mask"][rows].tolist() == [i != 7 for i in text.ids]
        for i, name in NAMES.items():
            expected = read_sites(model, ids, [Site(kind, i)])[Site(kind, i).name]
            assert whole[name].shape[1] == width and torch.allclose(whole[name][rows], expected, atol=1e-5)
        at += len(text.ids)
    lines = [json.loads(line) for line in (tmp_path / META).read_text().splitlines()]
    assert [line["tokens"] for line in lines] == [len(shard.tensors["token_ids"]) for shard in shards]
    assert all(100 <= line["tokens"] < 132 for line in lines[:-1]) and lines[0]["task_ids"] == ["a"]


def test_a_killed_capture_goes_on_and_ends_equal(model, tmp_path):
    write(model, tmp_path / "whole")

    class Kill(BaseException):
        """What no handler of ours catches."""

    def killed(done=[0]):  # noqa: B006
        def count(tokens):
            done[0] += 1
            if done[0] == 3:
                raise Kill

        return count

    with pytest.raises(Kill):
        write(model, tmp_path / "part", progress=killed())
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "part").glob("*.safetensors")}
    assert len(kept) == 3
    # A shard that was written and not yet listed is written again; one that is gone, too.
    listed = (tmp_path / "part" / META).read_text().splitlines(keepends=True)
    (tmp_path / "part" / META).write_text("".join(listed[:2]))
    assert write(model, tmp_path / "part") == sum(len(text.ids) for text in texts())
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "part").iterdir())
    assert (tmp_path / "whole" / META).read_text() == (tmp_path / "part" / META).read_text()
    for name in (name for name in files if name.endswith(".safetensors")):
        a, b = load_file(tmp_path / "whole" / name), load_file(tmp_path / "part" / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    first = sorted(kept)[0]
    assert (tmp_path / "part" / first).stat().st_mtime_ns == kept[first], "finished shards are not made again"


def test_what_does_not_fit_is_refused_and_left_alone(model, tmp_path):
    write(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for options, words in (
        ({"site": "residual"}, "site neurons, not residual"),
        ({"about": {"corpus": "y"}}, "corpus x, not y"),
        ({"dtype": torch.float16}, "dtype float32, not float16"),
        ({"source": texts(seed=1)}, "other tokens"),
    ):
        with pytest.raises(ValueError, match=words):
            write(model, tmp_path, **options)
    with pytest.raises(ValueError, match="model_digest"):
        write(neox(1), tmp_path)
    with pytest.raises(ValueError, match="another model"):
        list(read_capture(tmp_path, neox(1)))
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_damage_is_named(model, tmp_path):
    with pytest.raises(ValueError, match="no capture"):
        list(read_capture(tmp_path))
    write(model, tmp_path)
    shard = tmp_path / "shard-000001.safetensors"
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"shard-000001\.safetensors: damaged"):
        list(read_capture(tmp_path))
    (tmp_path / META).write_text("{\n")
    with pytest.raises(ValueError, match=r"meta\.jsonl:1"):
        list(read_capture(tmp_path))
    (tmp_path / ABOUT).write_text("no")
    with pytest.raises(ValueError, match=ABOUT):
        write(model, tmp_path)
