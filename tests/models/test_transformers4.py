"""Exports open in transformers 4 as well, where one is at hand in a directory of its own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers as hf

from slms.models.stock_tokenizer import write_tokenizer
from slms.models.stock_weights import write_stock
from tests.models.test_stock import SHAPE
from tests.models.test_stock_tokenizer import TEXT, tokenizer
from tests.models.test_stock_weights import IDS, routed

PLACE = os.environ.get("SLMS_TRANSFORMERS4")
REASON = "set SLMS_TRANSFORMERS4 to a directory made by pip install --target with transformers 4 (tests/SKIPS.md)"
READER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import numpy, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
assert transformers.__version__.startswith("4.") and "slms" not in sys.modules
model, found = AutoModelForCausalLM.from_pretrained(sys.argv[2], output_loading_info=True, torch_dtype="auto")
assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), found
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
with torch.no_grad():
    numpy.save(sys.argv[2] + "/logits.npy", model.eval()(torch.tensor(json.loads(sys.argv[3]))).logits.float().numpy())
read = [tokenizer(sys.argv[4]).input_ids, sorted(tokenizer.all_special_tokens), tokenizer.chat_template]
print(json.dumps(read + [str(model.dtype)]))
"""


@pytest.mark.skipif(PLACE is None, reason=REASON)
@pytest.mark.parametrize(
    ("name", "config", "changes"),
    [
        ("mixtral", hf.LlamaConfig(**SHAPE, rope_parameters={"rope_type": "default", "rope_theta": 5e5}), {"k": 3}),
        ("mixtral", hf.MistralConfig(**SHAPE, sliding_window=7), {}),
        ("qwen2_moe", hf.LlamaConfig(**SHAPE), {"layers": [1], "n_shared": 1}),
        ("qwen2_moe", hf.Qwen2Config(**SHAPE, tie_word_embeddings=True), {}),
        ("qwen3_moe", hf.Qwen3Config(**SHAPE, head_dim=10), {"layers": [0, 2]}),
    ],
)
def test_model_and_tokenizer_are_the_same_there(tmp_path, name, config, changes):
    assert PLACE is not None
    model, words = routed(config, **changes), tokenizer()
    write_stock(model, name, tmp_path)
    write_tokenizer(words, tmp_path)
    command = [sys.executable, "-c", READER, PLACE, str(tmp_path), json.dumps(IDS.tolist()), TEXT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ids, special, template, dtype = json.loads(done.stdout.splitlines()[-1])
    assert (ids, special) == (words(TEXT).input_ids, sorted(words.all_special_tokens))
    assert template == words.chat_template and dtype == "torch.float32"
    with torch.no_grad():
        ours = model(IDS).logits
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "logits.npy")), ours, rtol=2e-4, atol=2e-4)
