"""Registers the routed classes with transformers' Auto classes as soon as transformers is imported, not before.

`import slms` must make `AutoModelForCausalLM.from_pretrained` open routed models. But importing transformers' modelling
code takes five seconds, and a command that needs no model should not wait for it. So our configurations are registered
right after the first import of transformers (later, amid its own imports, ours would be circular). The models are
registered with the first routed configuration that is made.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


class Follow(MetaPathFinder):
    """Finds one module as Python would, and calls a function after the module has been executed."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self.name, self.then = name, then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's own spec with an extended loader; None for every other module."""
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        assert spec is not None and spec.loader is not None, fullname
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self.then()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this one loader
        return spec


def register() -> None:
    """Let AutoConfig and AutoModelForCausalLM open routed models; this imports transformers and may be repeated."""
    importlib.import_module("slms.models.routed_config").register()


def register_when_imported() -> None:
    """Register now if transformers is already imported, else as soon as it is."""
    if "transformers" in sys.modules:
        register()
    elif not any(isinstance(finder, Follow) for finder in sys.meta_path):
        sys.meta_path.insert(0, Follow("transformers", register))
