"""The routed classes with transformers' Auto classes, from the moment transformers is imported and not before.

`import slms` must make `AutoModelForCausalLM.from_pretrained` open routed models, yet importing transformers' modelling
code takes five seconds, which a command that needs no model should not wait for. So the first import of transformers is
followed by the registration of our configurations (later, in the middle of its own imports, ours would go in circles);
the models follow with the first routed configuration that is made.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


class Follow(MetaPathFinder):
    """Finds one module as Python would, and calls a function once it has been executed."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self.name, self.then = name, then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec, its loader extended; None for every other module."""
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
    """Let AutoConfig and AutoModelForCausalLM open routed models; imports transformers. May be called again."""
    importlib.import_module("slms.models.routed_config").register()


def register_when_imported() -> None:
    """Register now where transformers is imported, else as soon as it is."""
    if "transformers" in sys.modules:
        register()
    elif not any(isinstance(finder, Follow) for finder in sys.meta_path):
        sys.meta_path.insert(0, Follow("transformers", register))
