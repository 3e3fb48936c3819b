"""Readers of configs, manifests and results files read any content or refuse it in one line.

Inputs are real files with random damage to their structure or their bytes. `SLMS_FUZZ=10000 pytest tests/test_fuzz.py`
tries so many for each reader; by default a few hundred, the slow parser of training configs fewer.
"""

import contextlib
import copy
import io
import json
import os
import random
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig, GPTNeoConfig, GPTNeoForCausalLM

from slms.callbacks import CALLBACKS
from slms.commands.subject import run_base, run_text
from slms.data.corpora import CorpusConfig
from slms.data.probe_tasks import MANIFEST, read_tasks
from slms.lit.cli import TrainCLI
from slms.lit.parser import trains_coders
from slms.models.convert import route
from slms.models.directory import check_directory
from slms.models.io import load_model, save_model
from slms.models.routed_lm import routing_of
from slms.models.source import EMBEDDED, as_base, resolve
from slms.report.results import read_results, write_results
from slms.routing import RoutingConfig
from slms.sae.load import _read_config

ROOT = Path(__file__).resolve().parents[1]
INPUTS = int(os.environ.get("SLMS_FUZZ", "300"))
PARSED = int(os.environ.get("SLMS_FUZZ", "40"))  # a training config takes a tenth of a second
DEEP = {"a": None}
for _ in range(120):
    DEEP = {"a": [DEEP]}
NUMBERS = [None, True, False, -1, 0, 1, 2, 3.5, 1e308, -1e-320, 10**400, -(10**30), float("inf"), float("nan")]
WORDS = ["", " ", "x", "\x00", "é\u2028☃", "9" * 5000, "x" * 10_000, "1e400", "stories", "../../etc/passwd", "~/x", "/"]
NESTED = [[], {}, [[]], [None], {"": ""}, {"a": {"b": []}}, DEEP]
HOSTILE = [*NUMBERS, *WORDS, "a/b", "!!python/object/apply:os.system []", *NESTED]

SNIPPETS = [b"\xff", b"\x00", b"{", b"]", b'"', b"\n", b"&a *a ", b"\xf0\x9f", b"- ", b": ", b"[" * 3000]


def damage_tree(rng: random.Random, tree):
    """One to three random changes somewhere in a structure of dicts and lists."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        node = tree
        while isinstance(node, dict | list) and node:
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            child = node[key]
            if not (isinstance(child, dict | list) and child) or rng.random() < 0.25:
                break
            node = child
        if not (isinstance(node, dict | list) and node):
            return copy.deepcopy(rng.choice(HOSTILE))
        match rng.randrange(4):
            case 0:
                node[key] = copy.deepcopy(rng.choice(HOSTILE))
            case 1:
                del node[key]
            case 2 if isinstance(node, dict):
                node[rng.choice(["", "x", "schema_version", "source", "class_path", "name", str(key) + "_"])] = child
            case _:
                node[key] = [child, child] if rng.random() < 0.5 else {"x": child}
    return tree


def damage_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flip, cut, repeat or insert bytes."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) + 1)
        match rng.randrange(5):
            case 0 if content:
                content[at % len(content)] ^= 1 << rng.randrange(8)
            case 1:
                del content[at : at + rng.randrange(1, 200)]
            case 2:
                content[at:at] = content[at : at + rng.randrange(1, 200)]
            case 3:
                content[at:at] = rng.choice(SNIPPETS)
            case _:
                content = content[:at]
    return bytes(content)


def check(read, label: str, lines: int | None = 1) -> None:
    """`read()` returns, or raises a ValueError or OSError of one line (SystemExit with one line on stderr).

    lines: None allows the many lines of transformers' own errors, which the commands put on one.
    """
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err):
            read()
    except (ValueError, OSError) as error:
        assert str(error) and (lines is None or "\n" not in str(error).strip()), (label, str(error)[:500])
        return
    except SystemExit as stop:
        told = [line for line in err.getvalue().splitlines() if line.strip()]
        assert stop.code == 2 and len(told) == 1, (label, told[:5])
        return
    except BaseException as error:
        raise AssertionError(f"{label}: {type(error).__name__}: {str(error)[:300]}") from error


def fuzz(kind: str, inputs: int, structured, raw: bytes, file: Path, read, lines: int | None = 1) -> None:
    """Feed `inputs` damaged files, a quarter of them in bytes, the others in structure; input i is always the same."""
    for number in range(inputs):
        rng = random.Random(f"{kind} {number}")
        content = damage_bytes(rng, raw) if number % 4 == 0 else structured(rng)
        file.write_bytes(content)
        check(read, f"{kind} input {number}", lines)


def as_json(tree) -> bytes:
    return json.dumps(tree).encode()


def as_yaml(tree) -> bytes:
    return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace")


def test_results(tmp_path, results):
    path = write_results(results, tmp_path / "r.json")
    tree = json.loads(path.read_text())
    fuzz(
        "results", INPUTS, lambda rng: as_json(damage_tree(rng, tree)), as_json(tree), path, lambda: read_results(path)
    )


def test_manifests(tmp_path):
    rows = [json.loads(line) for line in MANIFEST.read_text().splitlines() if line.strip()]
    rows += [
        {"sentence_good": "A b.", "sentence_bad": "A c.", "UID": "u"},
        {"clean_prefix": "a", "clean_answer": " b", "patch_answer": " c"},
        {"task_id": "d", "source": {"type": "dataset", "name": "absent.txt", "num_docs": 2}},
        {"task_id": "s", "source": {"type": "stories", "kind": "number", "n": 2, "seed": 0}},
    ]
    for row in rows:
        if isinstance(row.get("source"), dict) and "n" in row["source"]:
            row["source"]["n"] = 2  # writing stories is not what is tested
    path = tmp_path / "m.jsonl"

    def lines(rng: random.Random) -> bytes:
        chosen = [rng.choice(rows) for _ in range(rng.randint(1, 3))]
        chosen[-1] = damage_tree(rng, chosen[-1])
        return b"\n".join(map(as_json, chosen))

    fuzz("manifest", INPUTS, lines, b"\n".join(map(as_json, rows[:3])), path, lambda: read_tasks(path))


@pytest.fixture(scope="module")
def parser():
    """The parser of train.py, built once."""

    class Built(Exception):
        pass

    class OnlyParser(TrainCLI):
        def parse_arguments(self, parser, args):
            raise Built(parser)

    with pytest.raises(Built) as caught:
        OnlyParser(CALLBACKS, [])
    return caught.value.args[0]


def test_training_configs(tmp_path, parser, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trees = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "configs").glob("routed_*.yaml"))]
    path = tmp_path / "c.yaml"

    def read():
        trains_coders(["--config", str(path)])
        config = parser.parse_args(["--config", str(path)])
        resolve(as_base(config.model.base))
        if (corpus := config.data.get("corpus")) is not None:
            CorpusConfig(**vars(corpus)).resolve("embedded")
        if config.model.routing is not None:
            RoutingConfig(**vars(config.model.routing)).routed_layers(8)

    fuzz(
        "training config",
        PARSED,
        lambda rng: as_yaml(damage_tree(rng, rng.choice(trees))),
        as_yaml(trees[0]),
        path,
        read,
    )


RUN = {
    "model": {"base": {"name": None, "hub": "a/b", "embedded": "stories-1m", "source": "embedded", "d_model": None}},
    "data": {
        "corpus": {"name": None, "hub": "a/b", "embedded": "stories", "validation": None, "text_field": "text"},
        "block_size": 256,
        "val_tokens": 1024,
    },
}


def test_configs_of_runs(tmp_path):
    path = tmp_path / "config.yaml"

    def read():
        run_text(tmp_path)
        run_base(str(tmp_path))

    fuzz("run config", INPUTS, lambda rng: as_yaml(damage_tree(rng, RUN)), as_yaml(RUN), path, read)


def test_configurations_of_models(tmp_path):
    routing = RoutingConfig(n_pathways=4, k=2).to_dict()
    tree = json.loads((EMBEDDED["stories-1m"] / "config.json").read_text()) | {"routing": routing}
    tree |= {"model_type": "routed_gpt_neo", "auto_map": {"AutoConfig": "x.Y"}}

    def read():
        check_directory(tmp_path, weights=False)
        RoutingConfig.from_dict(json.loads((tmp_path / "config.json").read_bytes()).get("routing") or {})

    path = tmp_path / "config.json"
    fuzz("model config", INPUTS, lambda rng: as_json(damage_tree(rng, tree)), as_json(tree), path, read)
    path.write_bytes(as_json(tree))
    assert routing_of(AutoConfig.from_pretrained(tmp_path)).to_dict() == routing


def test_models_whose_configuration_is_damaged(tmp_path):
    config = GPTNeoConfig(
        vocab_size=11,
        hidden_size=8,
        num_layers=2,
        num_heads=2,
        intermediate_size=8,
        window_size=4,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=16,
    )
    save_model(route(GPTNeoForCausalLM(config), RoutingConfig(n_pathways=4, k=2), None), None, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    tree = json.loads(path.read_text())
    read = lambda: load_model(tmp_path / "m")  # noqa: E731
    fuzz("model", PARSED, lambda rng: as_json(damage_tree(rng, tree)), as_json(tree), path, read, lines=None)


def test_indices_of_weights(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    tree = {"metadata": {"total_size": 3}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    path = tmp_path / "model.safetensors.index.json"
    read = lambda: check_directory(tmp_path)  # noqa: E731
    fuzz("index", INPUTS, lambda rng: as_json(damage_tree(rng, tree)), as_json(tree), path, read)


def test_configurations_of_coders(tmp_path):
    tree = {
        "architecture": "topk",
        "d_in": 8,
        "d_sae": 16,
        "dtype": "float32",
        "k": 2,
        "normalize_activations": "none",
        "metadata": {"hook_name": "blocks.0.hook_resid_post", "model_name": "stories-1m"},
    }
    path = tmp_path / "cfg.json"
    fuzz("coder", INPUTS, lambda rng: as_json(damage_tree(rng, tree)), as_json(tree), path, lambda: _read_config(path))


@pytest.fixture
def results():
    from tests.report.conftest import make_results

    return make_results(layers=(0, 2), n_pathways=2, k=1)
