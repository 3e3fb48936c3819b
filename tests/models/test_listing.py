"""The list of a base's MLPs from its config.json, against the model that transformers builds from it."""

import json
import subprocess
import sys

import pytest
from torch.nn import Module

import slms
from slms.models import anatomy
from slms.models.base import build_meta
from slms.models.listing import layers_of


@pytest.fixture
def directory(tiny, family, tmp_path):
    tiny(family).config.save_pretrained(tmp_path)
    return tmp_path


def test_a_config_lists_the_layers_of_the_model_built_from_it(directory, family):
    config = json.loads((directory / "config.json").read_text())
    built = anatomy.list_layers(build_meta(directory))
    assert slms.list_layers(directory) == built
    assert (layers_of(config) is None) == family.startswith("gemma")


@pytest.mark.parametrize("key", ["n_inner", "intermediate_size", "activation_function", "hidden_act", "n_layer"])
def test_what_a_config_leaves_out_is_as_transformers_has_it(directory, key):
    config = json.loads((directory / "config.json").read_text())
    config.pop(key, None)
    (directory / "config.json").write_text(json.dumps(config))
    assert slms.list_layers(directory) == anatomy.list_layers(build_meta(directory))


def test_another_activation_is_refused_as_the_model_would_be(directory):
    config = json.loads((directory / "config.json").read_text())
    for key in ("activation_function", "hidden_act", "hidden_activation"):
        config |= {key: "mish"} if key in config else {}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"activation Mish.* is not supported"):
        slms.list_layers(directory)


def test_a_model_is_listed_too(tiny):
    model: Module = tiny("llama")
    assert slms.list_layers(model) == anatomy.list_layers(model)


def test_a_hub_name_that_cannot_be_had_is_one_error():
    with pytest.raises(
        OSError, match=r"base nobody/none is not in the local cache and .*; name a model directory"
    ) as e:
        slms.list_layers("nobody/none")
    assert e.value.__cause__ is None and e.value.__context__ is None and "\n" not in str(e.value)


def test_neither_the_list_nor_the_overview_imports_pytorch():
    code = (
        "import sys; import eval; eval.main(['--help']); import slms; slms.list_layers('stories-1m'); "
        "print({'torch', 'transformers', 'sklearn', 'scipy'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("set()\n") and "specialization" in out
