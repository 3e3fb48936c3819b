"""The patches of docs/extending.md touch as few files as they promise, and what they add works."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n.*?```diff\n(.*?)```", PAGE, flags=re.M | re.S))
MOST = {"rule": 2, "metric": 2, "control": 1, "autoencoder": 3, "command": 3, "family": 1, "format": 1}
MOST |= {"plot": 1}
"""Files that an extension may touch, by the last word of its title that is a key."""

CHECK = """
from pathlib import Path

import torch
import transformers

import slms
from slms.data.stories import story
from slms.lit.controls import Plan, make_control
from slms.measure.metrics import METRICS
from slms.models.routed import record_routes
from slms.routing import RULES
from slms.sae.coders import build_coder
from slms.sae.config import CoderConfig
from slms.sae.export import OURS, Provenance, fold_scale, save

shape = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 1}
torch.manual_seed(0)
ids = torch.randint(3, 61, (4, 16))

# the family, and the rule
olmo = transformers.OlmoForCausalLM(transformers.OlmoConfig(**shape)).eval()
routed = slms.route(olmo, slms.RoutingConfig(n_pathways=4, k=2, every_n_layers=1, rule="above_mean"), ids)
with record_routes(routed) as routes:
    routed(ids)
assert type(routed).__name__ == "RoutedOlmoForCausalLM" and 0 < routes["L0.mlp"].chosen.float().mean() < 1
assert "those above the mean" in str(routed) and "above_mean" in RULES

# the control
base, _ = slms.load_base("stories-1m")
made = make_control("static_64", base, Plan(slms.RoutingConfig(layers=[1]), ids))
assert [layer.d_ff for layer in slms.list_layers(made.net)[:3]] == [256, 64, 256]

# the coder, and the metric
coder = build_coder(CoderConfig(kind="shifted", d_sae=16, k=4), 8)
assert coder.train().loss(torch.randn(32, 8), torch.randn(32, 8)).total.isfinite()
Path("coder").mkdir()
save(fold_scale(coder, 1.0), Path("coder"), Provenance("tiny", "blocks.0.hook_resid_post"))
assert slms.load_coder("coder").config.kind == "shifted" and "shifted" in OURS
assert METRICS["idle"].heading == "idle"

# the plot
kites = [s.text for s in map(story, [0] * 200, range(200)) if s.plot == "kite"]
assert kites and all(" kite" in text for text in kites)
"""


def files(patch: str) -> list[str]:
    return re.findall(r"^\+\+\+ (\S+)", patch, flags=re.M)


@pytest.mark.parametrize("title", SECTIONS)
def test_a_patch_touches_few_files(title):
    (most,) = [number for word, number in MOST.items() if word in title.lower()]
    assert 1 <= len(files(SECTIONS[title])) <= most
    (said,) = re.findall(rf"^\| \[{re.escape(title[0].lower() + title[1:])}\].*\| (\d+) \|$", PAGE, flags=re.M)
    assert int(said) == len(files(SECTIONS[title]))


@pytest.mark.slow
def test_every_patch_applies_and_what_it_adds_works(tmp_path):
    assert len(SECTIONS) == len(MOST)
    for package in ("slms", "kernels", "callbacks", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, symlinks=True, ignore=ignored)
    for name in ("eval.py", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    for title, patch in SECTIONS.items():
        command = ["git", "apply", "-p0", "--unidiff-zero", "-"]
        done = subprocess.run(command, cwd=tmp_path, input=patch, capture_output=True, text=True)
        assert done.returncode == 0, f"{title}: {done.stderr}"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    done = subprocess.run([sys.executable, "-c", CHECK], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = [sys.executable, "eval.py", "words", "stories-1m", "--n_tokens", "2048"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "pron " in done.stdout, done.stdout + done.stderr
    leave = [sys.executable, "eval.py", "export", "stories-1m", "--format", "summary", "--out", "left"]
    done = subprocess.run(leave, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "summary.txt\nwritten to left" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "left" / "summary.txt").read_text().startswith("GPTNeoForCausalLM")
