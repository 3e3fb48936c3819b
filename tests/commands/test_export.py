"""`eval.py export`."""

import json
import re
import sys

import pytest
import torch
import transformers as hf
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

import eval as evaluation
import slms
import train
from slms.commands.export import check_holds
from slms.measure.export import Comparison
from tests.models.test_stock import SHAPE

TEXT = ["--corpus=stories", "--block_size=32", "--n_tokens=320"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny Llama with the tokenizer of stories-1m, d_ff 48."""
    place = tmp_path_factory.mktemp("base") / "llama"
    tokenizer = slms.load_base("stories-1m").tokenizer
    torch.manual_seed(0)
    config = hf.LlamaConfig(**SHAPE | {"vocab_size": len(tokenizer)}, bos_token_id=0, eos_token_id=0)
    return slms.save_model(hf.LlamaForCausalLM(config), tokenizer, place)


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """A run of two steps, routed for export."""
    place, argv = tmp_path_factory.mktemp("runs"), sys.argv
    sys.argv = ["train.py"]
    try:
        train.main(flags(base, place))
    finally:
        sys.argv = argv
    (found,) = (place / "run").iterdir()
    return found


def flags(base, place, *more) -> list[str]:
    routing = ["stock=true", "n_pathways=4", "k=2", "every_n_layers=1"]
    data = ["corpus.name=stories", "block_size=32", "train_tokens=256", "epoch_tokens=256", "val_tokens=320"]
    return [
        f"--output_dir={place}",
        "--name=run",
        f"--model.base.name={base}",
        *(f"--model.routing.{option}" for option in routing),
        *(f"--data.{option}" for option in [*data, "batch_size=4"]),
        "--model.calibration_tokens=128",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        *more,
    ]


def refused(main, args, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_run_leaves_as_a_mixtral_with_tokenizer_and_card(run, tmp_path, capsys):
    out = tmp_path / "deep" / "mixtral"
    evaluation.main(["export", str(run), "--format", "mixtral", "--out", str(out), *TEXT])
    printed = capsys.readouterr().out
    assert "argmax      equal on" in printed and f"written to {out}" in printed
    config = json.loads((out / "config.json").read_text())
    assert (config["num_local_experts"], config["num_experts_per_tok"], config["intermediate_size"]) == (4, 2, 16)
    assert (
        len(AutoTokenizer.from_pretrained(out)) == config["vocab_size"] and (out / "generation_config.json").is_file()
    )
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "4 experts, of which each token runs 2" in card
    assert "export" in card and str(tmp_path) not in card and re.search(r"transformers \d", card)
    assert "license:" not in card.split("---")[1]
    named = json.loads((out / "tokenizer_config.json").read_text())
    assert named["tokenizer_class"] == "PreTrainedTokenizerFast" and "is_local" not in named
    assert [path.name for path in tmp_path.rglob(".*")] == []


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--format=mixtral"], "required: out"),
        (["--format=onnx", "--out={new}"], "--format onnx: it must be one of mixtral"),
        (["--format=mixtral", "--out={old}"], "exists; name a new one"),
        (["--format=mixtral", "--out={file}/sub/new"], "/file is no directory"),
        (["--format=gguf", "--out={new}", "--type=q4"], "--type q4: it must be one of f32, q8_0"),
        (["--format=neuronpedia", "--out={new}"], "holds a model, not coders; --format mixtral or qwen2_moe or"),
        (["--format=qwen3_moe", "--out={new}"], "is no qwen3_moe: it is a llama (--format mixtral or qwen2_moe)"),
    ],
)
def test_a_refused_export_is_one_line_and_leaves_nothing(run, tmp_path, capsys, args, named):
    (tmp_path / "old").mkdir()
    (tmp_path / "file").touch()
    places = {"new": tmp_path / "deep" / "new", "old": tmp_path / "old", "file": tmp_path / "file"}
    assert named in refused(
        evaluation.main, ["export", str(run), *(arg.format(**places) for arg in args), *TEXT], capsys
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "old"]


def test_one_out_is_for_one_run(run, tmp_path, capsys):
    said = refused(
        evaluation.main, ["export", str(run), str(run), "--format=mixtral", f"--out={tmp_path / 'new'}"], capsys
    )
    assert f"export writes one --out for one run, and 2 are named: {run}, {run}" in said
    assert not list(tmp_path.iterdir())


def test_coders_do_not_leave_as_a_model(tmp_path):
    (tmp_path / "saes" / "residual.1").mkdir(parents=True)
    (tmp_path / "saes" / "residual.1" / "cfg.json").touch()
    (tmp_path / "config.yaml").touch()
    for place in (tmp_path, tmp_path / "saes", tmp_path / "saes" / "residual.1"):
        with pytest.raises(ValueError, match="holds coders, not a model; --format neuronpedia or circuit_tracer fits"):
            check_holds(str(place), "gguf")
        check_holds(str(place), "neuronpedia")
    (tmp_path / "model").mkdir()  # what may hold both, or nothing that is known, is left to the format
    check_holds(str(tmp_path), "gguf")
    check_holds("EleutherAI/pythia-70m", "gguf")


def test_an_export_that_computes_something_else_is_not_kept(run, tmp_path, monkeypatch):
    model, tokenizer = slms.load_model(run / "model")
    monkeypatch.setattr("slms.commands.export.check_model", lambda model, name: None)
    for layer in model.model.layers:  # an export cannot express this, and would have been refused
        layer.mlp.router.selection_bias.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0]))
        layer.mlp.W_out.data *= 100
    with pytest.raises(ValueError, match="the export is not kept"):
        slms.export_model(model, tokenizer, tmp_path / "new", tokens())
    assert list(tmp_path.iterdir()) == []


def tokens(shape=(2, 32), dtype=torch.long):
    return torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("type", [None, "f32"])
def test_the_function_writes_gguf_too(run, tmp_path, type):
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    model, tokenizer = slms.load_model(run / "model")
    found = slms.export_model(model, tokenizer, tmp_path / "new", tokens(dtype=torch.int32), "gguf", type=type)
    assert found.equal("f32") and {path.name for path in (tmp_path / "new").iterdir()} == {
        "model-f32.gguf",
        "README.md",
    }
    card = (tmp_path / "new" / "README.md").read_text()
    call = 'slms.export_model(model, tokenizer, "path/of/this/directory", input_ids, "gguf", type="f32")'
    assert f"```python\nimport slms\n\n{call}\n```" in card
    with pytest.raises(ValueError, match="`tokenizer` is None; a GGUF file holds the tokenizer too"):
        slms.export_model(model, None, tmp_path / "other", tokens(), "gguf")


def test_a_dense_model_in_bf16_leaves_as_gguf_as_it_is(run, tmp_path):
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    base = slms.load_model(run / "model")
    dense = hf.LlamaForCausalLM(hf.LlamaConfig(**SHAPE | {"vocab_size": len(base.tokenizer)})).bfloat16().eval()
    assert slms.export_model(dense, base.tokenizer, tmp_path / "new", tokens(), "gguf").equal("f32")
    assert dense.dtype == torch.bfloat16
    assert "mixture" not in (tmp_path / "new" / "README.md").read_text()


@pytest.mark.parametrize(
    ("ids", "options", "said"),
    [
        (tokens(), {"format": "onnx"}, "`format` is 'onnx'; it must be one of mixtral, qwen2_moe, qwen3_moe, gguf"),
        (tokens(), {"format": "neuronpedia"}, "`format` is 'neuronpedia'; it must be one of mixtral"),
        (tokens(), {"type": "q8_0"}, "`type` is 'q8_0'; only the format gguf has types"),
        (tokens(), {"format": "gguf", "type": "q4"}, "`type` is 'q4'; it must be one of f32, q8_0"),
        (tokens()[0], {}, r"`input_ids` is torch.int64 \(32,\); it must be token ids \[blocks, positions\]"),
        (tokens(dtype=torch.float32), {}, "`input_ids` is torch.float32"),
        (tokens((2, 65)), {}, "`input_ids` has blocks of 65 tokens; the model takes at most 64"),
        (tokens((2, 1)), {}, "`input_ids` has blocks of 1 token"),
        (tokens() + 5000, {}, "`input_ids` holds token 50"),
    ],
)
def test_the_function_refuses_a_wrong_argument_in_one_line(run, tmp_path, ids, options, said):
    model, tokenizer = slms.load_model(run / "model")
    with pytest.raises(ValueError, match=said) as refused:
        slms.export_model(model, tokenizer, tmp_path / "new", ids, **options)
    assert "\n" not in str(refused.value) and list(tmp_path.iterdir()) == []


def test_the_function_takes_int32_and_says_in_the_card_that_it_was_called(run, tmp_path):
    model, tokenizer = slms.load_model(run / "model")
    assert slms.export_model(model, tokenizer, tmp_path / "new", tokens(dtype=torch.int32)).equal
    card = (tmp_path / "new" / "README.md").read_text()
    assert 'slms.export_model(model, tokenizer, "path/of/this/directory", input_ids, "mixtral")\n```' in card
    assert "```bash" not in card


def test_a_refused_model_in_bf16_gets_a_hint(run, tmp_path, monkeypatch):
    model, tokenizer = slms.load_model(run / "model")
    unlike = Comparison(4096, 33.0, 33.0, 0.988, 0.1)
    monkeypatch.setattr("slms.commands.export.compare_export", lambda *rest: unlike)
    hint = "in bfloat16 rounding alone can do this: give slms.export_model model.float()"
    with pytest.raises(ValueError, match=rf"98\.800% .*; {re.escape(hint)}$"):
        slms.export_model(model.bfloat16(), tokenizer, tmp_path / "new", tokens())
    with pytest.raises(ValueError) as refused:
        slms.export_model(model.float(), tokenizer, tmp_path / "new", tokens())
    assert "float()" not in str(refused.value)


def test_training_refuses_what_could_not_be_exported(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    several = ["routing.gate=unit", "routing.target=both", "routing.n_pathways=5", "balance.bias_rate=0.1"]
    for more, named in (
        (["--model.routing.gate=unit"], "--model.routing.gate=softmax"),
        (
            [f"--model.{option}" for option in several],
            "`routing.stock` is true, but `routing.target` is both (--model.routing.target=mlp) and `routing.gate` is "
            "unit (--model.routing.gate=softmax) and `routing.n_pathways` is 5 and d_ff 48 "
            "(--model.routing.n_pathways=2, 3, 4, 6, 8, 12, 16, 24) and `balance.bias_rate` is 0.1, and no stock "
            "router chooses by a bias (--model.balance.bias_rate=0)",
        ),
        (["--model.routing.n_pathways=5"], "d_ff 48 (--model.routing.n_pathways=2, 3, 4, 6, 8, 12"),
        (["--model.balance.bias_rate=0.001"], "--model.balance.bias_rate=0"),
        (["--model.base.name=stories-1m"], "a gpt_neo has no stock mixture of experts"),
    ):
        assert named in refused(train.main, flags(base, tmp_path / "runs", *more), capsys)
    assert not (tmp_path / "runs").exists()


def test_a_run_leaves_as_gguf(run, tmp_path, capsys, monkeypatch):
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["eval.py", "export", "RUN", "--format=gguf"])
    evaluation.main(["export", str(run), "--format=gguf", "--type=f32", f"--out={out}", "--n_tokens=512"])
    assert {path.name for path in out.iterdir()} == {"model-f32.gguf", "README.md"}
    card = ModelCard.load(out / "README.md")
    assert card.data.tags == ["slms", "gguf", "llama.cpp", "mixture-of-experts"] and card.data.base_model is None
    assert "Made from `llama`" in card.content and "4 experts, of which each token runs 2" in card.content
    assert "eval.py export RUN --format=gguf" in card.content and "llama-cli -m model-f32.gguf" in card.content
    assert str(tmp_path) not in card.content and str(run) not in card.content
    fields = gguf.GGUFReader(out / "model-f32.gguf").fields
    assert fields["llama.expert_used_count"].contents() == 2 and "llama.cpp" in capsys.readouterr().out
    again = ["export", str(run), f"--out={out}2", "--n_tokens=512"]
    said = refused(evaluation.main, [*again, "--format=mixtral", "--type=f32"], capsys)
    assert "--type f32: only --format gguf has types" in said
    said = refused(evaluation.main, [*again, "--format=gguf", "--type=q8_0"], capsys)
    assert "d_model is 24, and Q8_0 stores 32 weights of a row together" in said
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
