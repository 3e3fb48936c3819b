"""Only known files use undocumented parts of transformers, Lightning, torchmetrics or jsonargparse, in known ways.

A private name of theirs may be used in one file a library. An override that calls what it overrides takes any argument
and hands it on, unless it is a documented hook.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import FunctionType

import pytest
from lightning.pytorch import Callback, LightningDataModule, LightningModule

import slms
from slms.models.routed_lm import routed_class

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = {"transformers", "lightning", "torchmetrics", "jsonargparse"}
INTERNALS = {
    "slms/models/transformers_internals.py",
    "slms/lit/lightning_internals.py",
    "slms/metrics/states.py",  # torchmetrics
    "slms/option_names.py",  # jsonargparse
}
ALLOWED = {
    *"_asdict _fields _make _replace".split(),  # documented for named tuples
    *"_actions _option_string_actions".split(),  # argparse, which has no other way to list its options
    *"_parameters _buffers _modules".split(),  # torch, read for every call of a routed MLP: see routed_mlp.py
    "_version",  # torch: counts changes of a tensor in place
    # torch: whether another has a hand in a head or a layer
    *"_forward_hooks _forward_pre_hooks _global_forward_hooks _global_forward_pre_hooks".split(),
    *"_assert_async _dynamo_marked_constant _embedding_bag_per_sample_weights_backward".split(),  # torch: no others
}
FILES = sorted(path for room in ("slms", "callbacks", "kernels") for path in ROOT.glob(f"{room}/**/*.py"))
PRIVATE = re.compile(r"_[a-z]\w*")


@cache
def nodes(source: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(source)))


def own_names() -> set[str]:
    """What this project itself defines: functions, classes, and attributes of `self`."""
    names = set()
    for path in FILES:
        for node in nodes(path.read_text()):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node):
                names.add(node.attr)
    return names


def is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def strays(source: str, own: set[str]) -> list[str]:
    """Private names in a file's source that are another's: of an object, in a string for getattr, imported."""
    found = []
    for node in nodes(source):
        names = []
        if isinstance(node, ast.Attribute) and not is_own(node):
            names = [node.attr]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("getattr", "setattr", "pop"):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        found += [f"{node.lineno}: {n}" for n in names if PRIVATE.fullmatch(n) and n not in own | ALLOWED]
    return found


@pytest.mark.parametrize(
    "line",
    [
        "trainer._run()",
        "getattr(model, '_tied')",
        "from transformers._x import y",
        "model.__dict__.pop('_weight_conversions')",
        "trainer.strategy._x = 1",
    ],
)
def test_a_stray_is_found(line):
    assert strays(line, {"_own"}) and not strays("model._own, self._x, getattr(a, 'b')", {"_own"})


def test_no_file_but_one_a_library_uses_its_private_names():
    own = own_names()
    found = {str(path.relative_to(ROOT)): strays(path.read_text(), own) for path in FILES}
    assert {path: names for path, names in found.items() if names and path not in INTERNALS} == {}


@cache
def subclasses() -> list[type]:
    """Every class of this project with a base class in one of the libraries."""
    found = []
    for info in pkgutil.walk_packages(slms.__path__, "slms."):
        for value in vars(importlib.import_module(info.name)).values():
            if inspect.isclass(value) and value.__module__ == info.name and foreign(value):
                found.append(value)
    assert len(found) > 30
    return found


def foreign(cls: type) -> list[type]:
    return [base for base in cls.__mro__ if base.__module__.split(".")[0] in LIBRARIES]


def source_of(part: type | FunctionType) -> str:
    """Its source; empty where it was made by a call, as a dataclass's `__init__` or a routed model's class."""
    try:
        return textwrap.dedent(inspect.getsource(part))
    except OSError:
        return ""


@cache
def used(cls: type) -> set[str]:
    """The private names that a class defines, or uses as `self.name`; not what a library's own code stored on it."""
    stored = {name for base in foreign(cls) for name in re.findall(r"\bcls\.(\w+) = ", source_of(base))}
    names = set(vars(cls)) - stored | set(re.findall(r"\b(?:self|cls)\.(\w+)", source_of(cls)))
    return {name for name in names if PRIVATE.fullmatch(name)} - {"_abc_impl"}


def test_no_subclass_but_in_those_files_uses_or_shadows_a_private_name_of_its_base():
    for cls in subclasses():
        if cls.__module__.replace(".", "/") + ".py" not in INTERNALS:
            theirs = set().union(*map(used, foreign(cls)))
            assert used(cls) & theirs - ALLOWED == set(), cls


@pytest.mark.parametrize("asked", [False, True])
def test_what_transformers_stores_on_a_class_while_it_runs_is_not_ours(asked, monkeypatch):
    """It stores nothing on a class whose base was asked before, as another test in this process may have done."""
    cls = routed_class("llama")
    if asked:
        foreign(cls)[0]._can_set_attn_implementation()
    for base in cls.__mro__:
        for name in [name for name in vars(base) if name.startswith("_can_set_attn_implementation_")]:
            monkeypatch.delattr(base, name)
    cls._can_set_attn_implementation()
    (stored,) = (name for name in vars(cls) if name.startswith("_can_set_attn_implementation_"))
    used.cache_clear()
    assert stored not in used(cls)


def super_calls(method: FunctionType) -> list[ast.Call]:
    """The calls of the method that it overrides."""
    calls = [node for node in nodes(source_of(method)) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func) == f"super().{method.__name__}"]


def overrides() -> Iterator[tuple[type, Callable, FunctionType]]:
    """Class, the library's method, and the class's own in its place; documented hooks are left out."""
    hooks = {name for base in (Callback, LightningDataModule, LightningModule) for name in dir(base)} - {"__init__"}
    for cls in subclasses():
        for name, method in vars(cls).items():
            base = next((base for base in cls.__mro__[1:] if name in vars(base)), None)
            if inspect.isfunction(method) and base in foreign(cls) and name not in hooks:
                yield cls, vars(base)[name], method


def test_overrides_hand_on_what_they_are_given():
    checked = 0
    for cls, theirs, mine in overrides():
        for call in super_calls(mine):
            if mine.__name__ == "__init__":  # its own arguments are this project's; the base's go by keyword
                assert {ast.unparse(arg) for arg in call.args} <= {"*args", "config"}, cls
            elif len(inspect.signature(theirs).parameters) > 1:  # beside self
                assert [ast.unparse(k.value) for k in call.keywords if k.arg is None] == ["kwargs"], (cls, mine)
            checked += 1
    assert checked > 10


def test_transformers_does_not_take_our_kernels_for_hugging_faces_package():
    line = "import sys, transformers; print(transformers.utils.is_kernels_available(), 'slms' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
