"""transformers' Auto classes know the routed ones after `import slms`, which itself imports nothing heavy."""

import subprocess
import sys

import pytest

from slms.models.convert import route
from slms.models.io import save_model
from slms.models.registration import Follow, register_when_imported
from slms.routing import RoutingConfig

PROGRAM = """
import sys, slms
heavy = {"torch", "transformers", "lightning", "numba", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
from slms import kernels
assert "torch._dynamo" not in sys.modules  # the compiler is imported by those who compile
from transformers import AutoConfig, AutoModelForCausalLM
assert "slms.models.routed_lm" not in sys.modules
assert type(AutoConfig.from_pretrained(sys.argv[1])).__name__ == "RoutedGPTNeoXConfig"
print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)
"""


@pytest.mark.slow
def test_a_routed_directory_opens_in_a_fresh_process_and_import_slms_costs_nothing(tiny, tokens, tmp_path):
    config = RoutingConfig(n_pathways=5, k=2, router="linear")
    save_model(route(tiny("gpt_neox"), config, tokens(4, 16)), None, tmp_path / "m")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "m")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "RoutedGPTNeoXForCausalLM"


def test_what_is_imported_already_is_registered_at_once(monkeypatch):
    called = []
    monkeypatch.setattr("slms.models.registration.register", lambda: called.append(1))
    register_when_imported()
    assert called == [1] and not any(isinstance(finder, Follow) for finder in sys.meta_path)


def test_the_hook_follows_one_import_and_leaves(tmp_path, monkeypatch):
    (tmp_path / "follow_me.py").write_text("value = 1")
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    follow = Follow("follow_me", lambda: seen.append(sys.modules["follow_me"].value))
    monkeypatch.setattr(sys, "meta_path", [follow, *sys.meta_path])
    import follow_me

    assert seen == [1] and follow not in sys.meta_path and follow_me.__spec__ is not None
    assert follow.find_spec("anything_else", None) is None
