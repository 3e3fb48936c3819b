"""Model directories that cannot be loaded are refused in one line, before anything is built."""

import json

import pytest
import torch
from safetensors.torch import save_file

from slms.models.directory import check_complete, check_directory, weight_files


@pytest.fixture
def model_dir(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    save_file({"w": torch.arange(100.0), "v": torch.ones(3, 5)}, tmp_path / "model.safetensors")
    return tmp_path


def test_a_whole_directory_passes_and_gives_its_config(model_dir):
    assert check_directory(model_dir) == {"model_type": "gpt2"}
    assert weight_files(model_dir) == [model_dir / "model.safetensors"]


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_truncated_weights_are_named(model_dir, keep):
    file = model_dir / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated") as caught:
        check_directory(model_dir)
    assert "\n" not in str(caught.value)


def test_trailing_bytes_are_named_too(model_dir):
    file = model_dir / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or no safetensors file"):
        check_complete(file)


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", r"config\.json is no JSON"),
        ("[1]", r"config\.json holds no JSON object"),
        ('{"d": 1}', r"config\.json is no model configuration: `model_type` is None"),
        ('{"model_type": ["gpt2"]}', r"`model_type` is \['gpt2'\]"),
        ("[" * 100_000, r"config\.json is no JSON: nested too deeply"),
        ('{"model_type": "gpt2", "n_layer": 1000000}', "`n_layer` is 1000000; it must be at most 4,096"),
        ('{"model_type": "gpt_neo", "attention_types": [[["global"], 5000]]}', "`attention_types` is 5000; it must be"),
        (
            '{"model_type": "gpt2", "x": {"y": [1, 1' + "0" * 30 + "]}}",
            "`y` is 1000000000",
        ),
        ('{"model_type": "gpt2", "attn_implementation": "owner/kernel"}', "code from the hub is never fetched or run"),
        ('{"model_type": "gpt2", "_attn_implementation": {"": "owner/kernel"}}', "code from the hub is never"),
        ('{"model_type": "mine"}', "has model type `mine`: transformers does not know it"),
        ('{"model_type": "mine", "auto_map": {"AutoConfig": "x.Y"}}', "it brings its own code, which is never run"),
    ],
)
def test_bad_configurations_are_refused(model_dir, content, message):
    (model_dir / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        check_directory(model_dir)
    assert "\n" not in str(caught.value)


def test_a_native_type_with_remote_code_passes_because_that_code_is_ignored(model_dir, caplog):
    (model_dir / "config.json").write_text('{"model_type": "gpt2", "auto_map": {"AutoConfig": "x.Y"}}')
    assert check_directory(model_dir)["model_type"] == "gpt2"
    assert "brings code of its own (auto_map), which is not run" in caplog.text


def test_missing_pieces_are_named(model_dir, tmp_path):
    (model_dir / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no complete weights"):
        check_directory(model_dir)
    check_directory(model_dir, weights=False)
    (model_dir / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        check_directory(model_dir)
    with pytest.raises(FileNotFoundError, match="is no directory"):
        check_directory(tmp_path / "absent")


def test_sharded_weights_count_only_when_every_shard_is_there(model_dir):
    (model_dir / "model.safetensors").rename(model_dir / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"w": "model-00001-of-00002.safetensors", "u": "model-00002-of-00002.safetensors"}}
    (model_dir / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weight_files(model_dir) == []
    save_file({"u": torch.ones(2)}, model_dir / "model-00002-of-00002.safetensors")
    assert len(weight_files(model_dir)) == 2


@pytest.mark.parametrize("name", ["../weights.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b"])
def test_an_index_names_files_of_its_own_directory_only(model_dir, name):
    (model_dir / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ValueError, match="weights must lie in the model's own directory"):
        check_directory(model_dir)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": 3}', '{"weight_map": {"w": 3}}', "{", "\xff"])
def test_an_index_that_is_none_is_refused(model_dir, index):
    (model_dir / "model.safetensors.index.json").write_bytes(index.encode("latin-1"))
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        check_directory(model_dir)


@pytest.mark.parametrize("header", [b"[1]", b'{"w": 1}', b'{"w": {"data_offsets": ["a", "b"]}}', b'{"w": {}}', b"\xff"])
def test_a_header_of_another_make_is_refused(model_dir, header):
    file = model_dir / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        check_complete(file)


def test_safetensors_win_over_pickled_weights(model_dir):
    (model_dir / "pytorch_model.bin").write_bytes(b"anything")
    assert weight_files(model_dir) == [model_dir / "model.safetensors"]
    (model_dir / "model.safetensors").unlink()
    assert weight_files(model_dir) == [model_dir / "pytorch_model.bin"]


def test_gguf_and_adapters_are_named(tmp_path):
    (tmp_path / "model.Q8_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(FileNotFoundError, match=r"holds no config.json but model.Q8_0.gguf: name that file"):
        check_directory(tmp_path)
    with pytest.raises(ValueError, match=r"model.Q8_0.gguf` is a GGUF file, no directory"):
        check_directory(tmp_path / "model.Q8_0.gguf")
    (tmp_path / "model.Q8_0.gguf").unlink()
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "EleutherAI/pythia-70m"}')
    with pytest.raises(FileNotFoundError, match="an adapter of EleutherAI/pythia-70m, no model; merge it"):
        check_directory(tmp_path)
