"""editkit: knowledge editing in language models by closed-form weight changes, measured as it is done.

Names are resolved at first use, so that ``import editkit`` and ``import editkit.functional`` stay light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from editkit.api import EditedModel, edit
    from editkit.callbacks import Evaluation, Report, WeightUpdate
    from editkit.data.facts import Fact, load_facts
    from editkit.data.held_out import HeldOutText
    from editkit.data.module import FactsDataModule
    from editkit.data.probes import Probe
    from editkit.data.task_description import TaskDescription
    from editkit.editors import (
        EMMET,
        ENCORE,
        MEMIT,
        NSE,
        PMET,
        PRUNE,
        RECT,
        ROME,
        SPHERE,
        AlphaEdit,
        ClosedForm,
        ClosedFormEditor,
        CurvatureWeighted,
        EditedLayer,
        Editor,
        Identity,
        LastLayer,
        LayerProblem,
        LyapLock,
        LyapunovQueue,
        Neurons,
        NullSpace,
        OfEditor,
        Part,
        PreservationRule,
        RescaledValues,
        ResidualRule,
        RestraintRule,
        SearchedValues,
        SecondMoment,
        SecondMomentSource,
        SequentialMEMIT,
        SimIE,
        SoftEMMET,
        Spread,
        SquareRootSpread,
        StandardisedGradient,
        UltraEdit,
        ValueEditor,
        ValueSearch,
    )
    from editkit.edits import (
        Context,
        Edit,
        EditModule,
        Edits,
        ModuleEdit,
        PromptEdit,
        WeightEdit,
        load_edits,
    )
    from editkit.evaluation.protocol import Protocol
    from editkit.export import export_adapter, export_checkpoint
    from editkit.models.loading import load_language_model
    from editkit.utils.errors import InputError

    __version__: str

_HOME = {
    "AlphaEdit": "editors", "ClosedForm": "editors", "ClosedFormEditor": "editors", "CurvatureWeighted": "editors",
    "EMMET": "editors", "ENCORE": "editors", "EditedLayer": "editors", "Editor": "editors", "Identity": "editors",
    "LastLayer": "editors", "LayerProblem": "editors", "LyapLock": "editors", "LyapunovQueue": "editors",
    "MEMIT": "editors", "NSE": "editors", "Neurons": "editors", "NullSpace": "editors", "OfEditor": "editors",
    "PMET": "editors", "PRUNE": "editors", "Part": "editors", "PreservationRule": "editors", "RECT": "editors",
    "ROME": "editors", "RescaledValues": "editors", "ResidualRule": "editors", "RestraintRule": "editors",
    "SPHERE": "editors", "SearchedValues": "editors", "SecondMoment": "editors", "SecondMomentSource": "editors",
    "SequentialMEMIT": "editors", "SimIE": "editors", "SoftEMMET": "editors", "Spread": "editors",
    "SquareRootSpread": "editors", "StandardisedGradient": "editors", "UltraEdit": "editors",
    "ValueEditor": "editors", "ValueSearch": "editors",
    "Fact": "data.facts", "load_facts": "data.facts", "FactsDataModule": "data.module",
    "Probe": "data.probes", "TaskDescription": "data.task_description", "HeldOutText": "data.held_out",
    "Protocol": "evaluation.protocol",
    "WeightUpdate": "callbacks", "Evaluation": "callbacks", "Report": "callbacks",
    "Edit": "edits", "WeightEdit": "edits", "PromptEdit": "edits", "Context": "edits", "ModuleEdit": "edits",
    "EditModule": "edits", "Edits": "edits", "load_edits": "edits", "edit": "api", "EditedModel": "api",
    "InputError": "utils.errors", "load_language_model": "models.loading",
    "export_adapter": "export", "export_checkpoint": "export",
}  # fmt: skip

_RENAMED = {"MomentSource": "SecondMomentSource"}

__all__ = [
    "AlphaEdit",
    "ClosedForm",
    "ClosedFormEditor",
    "Context",
    "CurvatureWeighted",
    "EMMET",
    "ENCORE",
    "Edit",
    "EditModule",
    "EditedLayer",
    "EditedModel",
    "Editor",
    "Edits",
    "Evaluation",
    "Fact",
    "FactsDataModule",
    "HeldOutText",
    "Identity",
    "InputError",
    "LastLayer",
    "LayerProblem",
    "LyapLock",
    "LyapunovQueue",
    "MEMIT",
    "ModuleEdit",
    "NSE",
    "Neurons",
    "NullSpace",
    "OfEditor",
    "PMET",
    "PRUNE",
    "Part",
    "PreservationRule",
    "Probe",
    "PromptEdit",
    "Protocol",
    "RECT",
    "ROME",
    "Report",
    "RescaledValues",
    "ResidualRule",
    "RestraintRule",
    "SPHERE",
    "SearchedValues",
    "SecondMoment",
    "SecondMomentSource",
    "SequentialMEMIT",
    "SimIE",
    "SoftEMMET",
    "Spread",
    "SquareRootSpread",
    "StandardisedGradient",
    "TaskDescription",
    "UltraEdit",
    "ValueEditor",
    "ValueSearch",
    "WeightEdit",
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
    if name in _RENAMED:
        raise AttributeError(f"editkit.{name} was renamed to editkit.{_RENAMED[name]}")
    raise AttributeError(f"module 'editkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
