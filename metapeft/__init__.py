"""metapeft: bilevel meta-learning of parameter-efficient updates in PyTorch.

`import metapeft as mp` loads no more than torch itself: every name below is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Folders that can be extended. Each has a `registry`, and its Python names are also names of this package.
_FOLDERS = ("updates", "episodes", "datasets", "heads", "generators", "hypergradients")
# Folders that are used through their own name: mp.inner.SGD, mp.methods.maml, mp.backbones.conv4.
_NAMESPACES = ("inner", "methods", "backbones", "report", *_FOLDERS)
_NAMES = {
    "NumericalError": "errors",
    "NotFiniteInput": "errors",
    "DataError": "errors",
    "RunError": "errors",
    "Learner": "learner",
    "Adapted": "adapted",
    "BilevelTrainer": "trainer",
    "pretrain": "pretraining",
    "keep_freed_memory": "allocator",
    "use_compiled": "compiled.switch",
    "calibrate": "pretraining",
    "evaluate": "evaluation",
    "compare": "evaluation",
    "load": "loading",
    "save": "loading",
}


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        return importlib.import_module(f"metapeft.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"metapeft.{_NAMES[name]}"), name)
    for folder in _FOLDERS:
        registry = importlib.import_module(f"metapeft.{folder}").registry
        if name in registry:
            return registry.attribute(name)
    raise AttributeError(f"module 'metapeft' has no attribute {name!r}")


def __dir__() -> list[str]:
    names = {*_NAMESPACES, *_NAMES, "__version__"}
    for folder in _FOLDERS:
        names.update(importlib.import_module(f"metapeft.{folder}").registry)
    return sorted(names)
