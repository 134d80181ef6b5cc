"""editkit: knowledge editing in language models by closed-form weight changes, measured as it is done.

Names are resolved at first use, so that ``import editkit`` and ``import editkit.functional`` stay light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from editkit.api import EditedModel, edit
    from editkit.callbacks import Report, WeightUpdate
    from editkit.data.facts import Fact, load_facts
    from editkit.data.held_out import HeldOutText
    from editkit.data.module import FactsDataModule
    from editkit.data.probes import Probe
    from editkit.editors import (
        EMMET,
        MEMIT,
        ROME,
        Editor,
        LastLayer,
        SecondMomentSource,
        Spread,
        SquareRootSpread,
        ValueSearch,
    )
    from editkit.edits import Edits, load_edits
    from editkit.evaluation.protocol import Protocol
    from editkit.export import export_adapter, export_checkpoint
    from editkit.models.loading import load_language_model
    from editkit.utils.errors import InputError

    __version__: str

_HOME = {
    "EMMET": "editors", "MEMIT": "editors", "ROME": "editors", "Editor": "editors", "ValueSearch": "editors",
    "SecondMomentSource": "editors", "Spread": "editors", "SquareRootSpread": "editors", "LastLayer": "editors",
    "Fact": "data.facts", "load_facts": "data.facts", "FactsDataModule": "data.module",
    "Probe": "data.probes", "HeldOutText": "data.held_out", "Protocol": "evaluation.protocol",
    "WeightUpdate": "callbacks", "Report": "callbacks",
    "Edits": "edits", "load_edits": "edits", "edit": "api", "EditedModel": "api", "InputError": "utils.errors",
    "load_language_model": "models.loading", "export_adapter": "export", "export_checkpoint": "export",
}  # fmt: skip

__all__ = [
    "EMMET",
    "MEMIT",
    "ROME",
    "EditedModel",
    "Editor",
    "Edits",
    "Fact",
    "FactsDataModule",
    "HeldOutText",
    "InputError",
    "LastLayer",
    "SecondMomentSource",
    "Probe",
    "Protocol",
    "Report",
    "Spread",
    "SquareRootSpread",
    "ValueSearch",
    "WeightUpdate",
    "edit",
    "export_adapter",
    "export_checkpoint",
    "load_edits",
    "load_facts",
    "load_language_model",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # as slow to import as all the rest of this file

        return version("editkit")
    if name in _HOME:
        return getattr(importlib.import_module(f"editkit.{_HOME[name]}"), name)
    raise AttributeError(f"module 'editkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
