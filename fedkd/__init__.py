"""fedkd: consolidate pre-trained silo models by knowledge distillation, then federate.

Run a study and read its results::

    import fedkd

    results = fedkd.compare("study.yaml")
    print(results)
    results.to_pandas()

``results`` is a :class:`Comparison`. ``fedkd --help`` lists what the command line adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedkd.version import VERSION

if TYPE_CHECKING:
    from fedkd.api import Comparison, compare
    from fedkd.config import Study
    from fedkd.config.study_file import load_study
    from fedkd.errors import FedKDError, UserError
    from fedkd.user_code import local_loss, method

__version__ = VERSION
__all__ = [
    "Comparison",
    "FedKDError",
    "Study",
    "UserError",
    "compare",
    "load_study",
    "local_loss",
    "method",
]

# Imported on first use, so that importing fedkd stays quick.
_MODULES = {
    "Comparison": "fedkd.api",
    "FedKDError": "fedkd.errors",
    "Study": "fedkd.config",
    "UserError": "fedkd.errors",
    "compare": "fedkd.api",
    "load_study": "fedkd.config.study_file",
    "local_loss": "fedkd.user_code",
    "method": "fedkd.user_code",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'fedkd' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
