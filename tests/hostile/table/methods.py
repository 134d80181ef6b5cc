"""Methods and their parts: settings out of bounds, parts of another kind, and combinations that make no sense."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from editing import facts, same_state, state
from hostile import Call, Command, Places

import editkit
from editkit.editors.base import Editor
from editkit.models.loading import load_language_model

SMALL = "fit --data.num_facts=4 --run_dir=run --trainer.enable_progress_bar=false --model=editkit."
QUICK = "--model.values.num_steps=2 --model.second_moment.path=$moments --model.second_moment.num_tokens=8000 "
WITHIN = "--model.editor.second_moment.path=$moments --model.editor.second_moment.num_tokens=8000 "
TWO = "--data.batch_size=2 --weight_update.mode=sequential "
NUMBER = r"expected a number > 0"
SHARE = r"expected a number > 0 and <= 1, but got"
ONE_OF = r"expected one of"
SEARCH = r"model\.residual: expected one that searches for values, as"
FACTS = [{"subject": name, "prompt": "{} lies in", "target_new": "Asia"} for name in ("Lyon", "Bonn")]

#: what is typed after --model=editkit., and the line that it ends in
TYPED = {
    # null space
    "AlphaEdit --model.threshold=1e-9": r"threshold: expected some of the 1536 eigenvalues.*none of them; raise it",
    "AlphaEdit --model.threshold=1e9": r"threshold: expected some of the 1536 eigenvalues.*all of them; lower it",
    "AlphaEdit --model.threshold=0": rf"model\.threshold: {NUMBER}",
    "AlphaEdit --model.threshold=inf": r"model\.threshold: expected a finite number",
    "AlphaEdit --model.threshold=nan": rf"model\.threshold: {NUMBER}",
    "AlphaEdit --model.damping=0": rf"model\.damping: {NUMBER}",
    "AlphaEdit --model.preservation=editkit.Identity": r"model\.preservation: editkit\.AlphaEdit has no such option",
    "ClosedForm --model.preservation=editkit.NullSpace --model.preservation.threshold=1e9": r"threshold: .*lower it",
    # neurons
    "NSE --model.share=0": rf"model\.share: {SHARE} '0'",
    "NSE --model.share=1.5": rf"model\.share: {SHARE} '1\.5'",
    "NSE --model.share=-1": rf"model\.share: {SHARE} '-1'",
    "NSE --model.share=1e-6": r"share: expected .* that leaves a neuron, .*1 of 1536.*raise it",
    "NSE --model.least=5 --model.most=5": r"model\.most: expected more than model\.least = 5, but got 5; raise it",
    "NSE --model.least=7 --model.most=5": r"model\.most: expected more than model\.least = 7, but got 5; raise it",
    "NSE --model.least=-1": r"model\.least: expected a number >= 0",
    "NSE --model.most=inf": r"model\.most: expected a finite number",
    "NSE --model.rounds=0": rf"model\.rounds: {NUMBER}",
    "ClosedForm --model.preservation=editkit.Neurons --model.preservation.share=0": rf"preservation\.share: {SHARE}",
    "NSE --model.residual=editkit.StandardisedGradient": rf"{SEARCH} NSE",
    # gradients
    "UltraEdit --model.lr=-1": rf"model\.lr: {NUMBER}",
    "UltraEdit --model.lr=inf": r"model\.lr: expected a finite number",
    "UltraEdit --model.ridge=auto": r"model\.ridge: 'auto' chooses along the path.*give one",
    "UltraEdit --model.micro_batch=0": rf"model\.micro_batch: {NUMBER}",
    "UltraEdit --model.variance=both": rf"model\.variance: {ONE_OF} 'paper', 'code', but got 'both'",
    "UltraEdit --data.batch_size=2 --model.variance=code --model.micro_batch=1": r"data\.batch_size: expected at least "
    r"two target tokens.*raise data\.batch_size and micro_batch, or set variance to paper",
    "UltraEdit --model.spread=editkit.SquareRootSpread": r"model\.spread: expected none, as StandardisedGradient",
    "PMET --model.residual=editkit.StandardisedGradient": rf"{SEARCH} PMET",
    # another editor's changes
    f"SimIE {TWO}--model.editor=editkit.ROME --model.editor.layers=[0]": r"data\.batch_size: .*1 fact at a time.*got 2",
    "SimIE --model.layers=[0] --model.editor=editkit.MEMIT --model.editor.layers=[1]": r"model\.residual\.editor: .*bl"
    r"ocks \[0\] alone, but MEMIT edits blocks \[1\]; give both the same layers",
    "SimIE --model.editor=editkit.SimIE --model.editor.layers=[0]": r"residual\.editor: .*finds its changes itself",
    "SimIE --model.editor=editkit.EMMET --model.editor.layers=[0] --model.editor.ridge=auto": r"editor\.ridge: 'auto'.*"
    r"own editor",
    f"SimIE --model.editor=editkit.AlphaEdit --model.editor.layers=[0] {WITHIN}--model.editor.threshold=1e9": r"thresho"
    r"ld: .*lower it",
    "SimIE --model.editor=editkit.Editor": r"Editor is the base of editors",
    "SimIE --model.editor=editkit.Nope": r"model\.editor: .*Nope",
    "SimIE --model.editor=editkit.RECT": r"model\.editor: .*RECT",
    "SimIE --model.damping=0": rf"model\.damping: {NUMBER}",
    "SimIE --model.ridge=auto": r"model\.ridge: 'auto' chooses along the path",
    "SimIE --model.start=nowhere": rf"model\.start: {ONE_OF} 'unedited', 'present'",
    "SimIE --model.residual=editkit.RescaledValues": r"model\.residual: editkit\.SimIE has no such option",
    "MEMIT --model.residual=editkit.OfEditor": r"model\.residual\.editor: expected a value, but got none",
    # restraints
    **{
        f"MEMIT --model.restraints='[{{class_path: editkit.{part}, init_args: {{{setting}}}}}]'": line
        for part, setting, line in (
            ("RECT", "share: 0", rf"model\.restraints\.share: {SHARE} '0'"),
            ("RECT", "share: 1.1", rf"model\.restraints\.share: {SHARE} '1\.1'"),
            ("RECT", "code: mine", rf"model\.restraints\.code: {ONE_OF} 'alphaedit', 'rect', but got 'mine'"),
            ("PRUNE", "base: 1", r"model\.restraints\.base: expected a number > 1, but got"),
            ("PRUNE", "base: inf", r"model\.restraints\[0\]\.base: expected a finite number"),
            ("PRUNE", "when: never", rf"model\.restraints\.when: {ONE_OF} 'end', 'each', but got 'never'"),
            ("SPHERE", "ratio: 1", r"model\.restraints\.ratio: expected a number >= 0 and < 1, but got '1'"),
            ("SPHERE", "strength: 2", r"model\.restraints\.strength: expected a number >= 0 and <= 1, but got '2'"),
            ("SPHERE", "side: top", rf"model\.restraints\.side: {ONE_OF} 'input', 'output'"),
            ("SPHERE", "sides: input", r"model\.restraints.*sides"),
        )
    },
    "MEMIT --model.restraints=[editkit.Nope]": r"model\.restraints: .*no attribute 'Nope'",
    "MEMIT --model.restraints=[editkit.Identity]": r"model\.restraints: .*Identity does not .* RestraintRule",
    "MEMIT --model.restraints=[5]": r"model\.restraints: .*RestraintRule",
    "MEMIT --model.restraints=5": r"model\.restraints: expected a list",
    "MEMIT --model.restraints=[editkit.RestraintRule]": r"model\.restraints\[0\]: .*is a base and has no apply; choose",
    # parts of another kind
    "ClosedForm --model.preservation=editkit.RECT": r"model\.preservation: .*subclass of PreservationRule.*RECT",
    "ClosedForm --model.preservation=editkit.Nope": r"model\.preservation: .*no attribute 'Nope'",
    "ClosedForm --model.preservation=editkit.PreservationRule": r"model\.preservation: .*is a base and has no of",
    "MEMIT --model.residual=editkit.Identity": r"model\.residual: .*subclass of ResidualRule.*Identity",
    "MEMIT --model.preservation=editkit.Identity": r"model\.preservation: editkit\.MEMIT has no such option",
    # numbers
    "ClosedForm --model.preservation=editkit.SecondMoment --model.preservation.weight=-1": rf"weight: {NUMBER}",
    "ClosedForm --model.preservation=editkit.SecondMoment --model.preservation.weight=inf": r"preservation\.weight: "
    r"expected a finite number",
    "ClosedForm --model.earlier_keys=-1": r"model\.earlier_keys: expected a number >= 0",
    "ClosedForm --model.earlier_keys=inf": r"model\.earlier_keys: expected a finite number",
    "ClosedForm --model.ridge=-1": r"model\.ridge: expected a number >= 0",
    "SoftEMMET --model.ridge=0": rf"model\.ridge: {NUMBER}",
    "LyapLock --model.tolerance=0": rf"model\.tolerance: {NUMBER}",
    "LyapLock --model.tolerance=nan": rf"model\.tolerance: {NUMBER}",
    "LyapLock --model.preservation_weight=inf": r"model\.preservation_weight: expected a finite number",
    "SequentialMEMIT --model.preservation_weight=0": rf"model\.preservation_weight: {NUMBER}",
    "ENCORE --model.damping=-1": r"model\.damping: expected a number >= 0",
    "ENCORE --model.values.stop_after_first=-1": r"model\.values\.stop_after_first: expected a number >= 0",
    "MEMIT --model.values.weights=edited": rf"model\.values\.weights: {ONE_OF} 'present', 'unedited'",
    "MEMIT --model.residual=editkit.RescaledValues --model.residual.anchor=0": rf"residual\.anchor: {NUMBER}",
    "MEMIT --model.residual=editkit.RescaledValues --model.residual.skip_factor=inf": r"skip_factor: expected a finite",
    "MEMIT --model.residual=editkit.RescaledValues --model.residual.dropped=2": r"residual\.dropped: expected a number",
    "ROME --model.key=other": rf"model\.key: {ONE_OF} 'averaged', 'prompt', 'both', but got 'other'",
    "ROME --data.batch_size=2": r"data\.batch_size: .*1 fact at a time",
    # curvature
    "CurvatureWeighted --model.power=2": r"model\.power: expected a number >= 0 and <= 1, but got '2'",
    "CurvatureWeighted --model.ridge=1": r"model\.ridge: editkit\.CurvatureWeighted has no such option",
    "CurvatureWeighted --model.preservation=editkit.LyapunovQueue": r"model\.preservation: .*pulls back",
    "SoftEMMET --model.preservation=editkit.LyapunovQueue": r"model\.preservation: .*pulls back",
}

#: of a model without a text of its own
TEXTLESS = {
    "AlphaEdit": "AlphaEdit",
    "ClosedForm with neurons": "ClosedForm --model.preservation=editkit.Neurons",
    "UltraEdit under a second moment": "UltraEdit --model.preservation=editkit.SecondMoment",
    "LyapLock": "LyapLock",
    "SimIE around MEMIT": "SimIE --model.editor=editkit.MEMIT --model.editor.layers=[0]",
}


def edit(make: Callable[[], Editor], count: int = 2, **given: Any) -> Callable[[Path, Places], None]:
    """``editkit.edit`` with an editor that cannot do it, after which the model must be as it was."""

    def call(folder: Path, places: Places) -> None:
        model, tokenizer = load_language_model(str(places.tiny))
        before = state(model)
        options = {"facts": FACTS[:count], "evaluate": False, "progress": False, **given}
        try:
            editkit.edit(model, tokenizer, editor=make(), **options)
        finally:
            assert same_state(model, before)

    return call


def of_atlas(make: Callable[[], Editor], **given: Any) -> Callable[[Path, Places], None]:
    """The same on the atlas, with its second moments at hand."""

    def call(folder: Path, places: Places) -> None:
        model, tokenizer = load_language_model("atlas")
        before = state(model)
        options = {"second_moment": places.moments, "evaluate": False, "progress": False, **given}
        editor = make()
        editor.second_moment.num_tokens = 8000  # type: ignore[union-attr]
        try:
            editkit.edit(model, tokenizer, facts(2), editor, **options)
        finally:
            assert same_state(model, before)

    return call


def no_search(*_: Any) -> None:
    raise AssertionError("a search began")


class Unsearched(editkit.AlphaEdit):
    """Tells whether anything is searched for before its settings are looked at."""

    find = no_search  # type: ignore[assignment]


class Elsewhere(Editor):
    """An editor that changes another parameter than a projection."""

    def edit(self, batch: Any) -> editkit.WeightEdit:
        from editkit.functional import DenseDelta

        return editkit.WeightEdit(deltas={"transformer.wpe.weight": DenseDelta(torch.ones(64, 32))})


ROWS = [
    *(
        Command(typed, f"{SMALL}{typed.split()[0]} {QUICK}{' '.join(typed.split(' ')[1:])}", line)
        for typed, line in TYPED.items()
    ),
    *(
        Command(
            f"{name} where there is no text",
            f"{SMALL}{typed} --model.lm=$tiny --model.layers=[0]",
            r"second_moment\.text: expected a text from which the second moments .*give .*second_moment\.path",
        )
        for name, typed in TEXTLESS.items()
    ),
    Command(
        "one row to standardise",
        f"{SMALL}UltraEdit --data.batch_size=1 --data.num_facts=2 --data.facts=facts.json --data.split=null",
        r"data\.batch_size: expected at least two target tokens .*'Asia' has one and is alone; raise data\.batch_size$",
        {"facts.json": json.dumps(FACTS)},
    ),
    Command(
        "a restraint that is given as a class alone",
        f"{SMALL}MEMIT {QUICK}--model.restraints=editkit.RECT",
        r"model\.restraints: .*list",
    ),
    Command("a class that does not exist", f"{SMALL}AlphaEdits", r"model: expected an editor, .*AlphaEdits"),
    # in Python nothing checks types
    Call(
        "no null space, before any search",
        of_atlas(lambda: Unsearched(threshold=1e-9)),
        r"threshold: .*none of them; raise it",
    ),
    Call("all of it, before any search", of_atlas(lambda: Unsearched(threshold=1e9)), r"threshold: .*all of them"),
    Call("a share that only the keys tell", of_atlas(lambda: editkit.NSE(share=1e-3)), r"share: .*leaves a neuron"),
    Call("a share of 0", edit(lambda: editkit.NSE(layers=[0], share=0.0)), r"model.*share: expected a number >0"),
    Call("most below least", of_atlas(lambda: editkit.NSE(least=2.0, most=1.0)), r"model\.most: expected more"),
    Call("one row", edit(lambda: editkit.UltraEdit(layers=[0]), count=1), r"data\.batch_size: .*two target tokens"),
    Call(
        "one row at a time by the code's variance",
        edit(lambda: editkit.UltraEdit(layers=[0], variance="code", micro_batch=1)),
        r"data\.batch_size: .*or set variance to paper",
    ),
    Call("a negative rate", edit(lambda: editkit.UltraEdit(layers=[0], lr=-1.0)), r"model.*lr: expected a number >0"),
    Call("no rate", edit(lambda: editkit.UltraEdit(layers=[0], lr=math.nan)), r"model.*lr: expected a finite"),
    Call("no text", edit(lambda: editkit.AlphaEdit(layers=[0])), r"second_moment\.text: expected a text"),
    Call(
        "a restraint alone",
        lambda *_: editkit.MEMIT(restraints=editkit.RECT()),  # type: ignore[arg-type]
        r"model\.restraints: expected a list",
    ),
    Call(
        "a restraint for a preservation",
        lambda *_: editkit.ClosedForm(preservation=editkit.RECT()),  # type: ignore[arg-type]
        r"model\.preservation: expected a PreservationRule, but got .*RECT.*; choose one of Identity",
    ),
    Call(
        "a preservation for a residual",
        lambda *_: editkit.ClosedForm(residual=editkit.Identity()),  # type: ignore[arg-type]
        r"model\.residual: expected a ResidualRule",
    ),
    Call(
        "a preservation for a restraint",
        lambda *_: editkit.ClosedForm(restraints=[editkit.Identity()]),  # type: ignore[list-item]
        r"model\.restraints: expected a RestraintRule",
    ),
    Call(
        "a class for a part",
        lambda *_: editkit.ClosedForm(preservation=editkit.Identity),  # type: ignore[arg-type]
        r"model\.preservation: expected a PreservationRule, but got the class Identity",
    ),
    *(
        Call(
            f"{name} in Python",
            lambda *_, restraint=restraint: editkit.MEMIT(restraints=[restraint()]).check_settings(),
            line,
        )
        for name, restraint, line in (
            ("nothing kept", lambda: editkit.RECT(share=0.0), r"model\.restraints\[0\]\.share: expected a number"),
            ("a base of 1", lambda: editkit.PRUNE(base=1.0), r"model\.restraints\[0\]\.base: expected a number >1"),
            ("all main", lambda: editkit.SPHERE(ratio=1.0), r"model\.restraints\[0\]\.ratio: expected a number"),
        )
    ),
    Call(
        "another parameter",
        edit(lambda: editkit.SimIE(layers=[0], editor=Elsewhere())),
        r"model\.residual\.editor: .*blocks \[0\] alone, but Elsewhere changes transformer\.wpe\.weight",
    ),
    Call(
        "one fact at a time",
        of_atlas(lambda: editkit.ClosedForm(residual=editkit.OfEditor(editkit.ROME())), batch_size=2),
        r"data\.batch_size: ROME takes 1 at a time, but got 2; set it to 1",
    ),
    Call("earlier keys below 0", edit(lambda: editkit.SimIE(layers=[0], earlier_keys=-1.0)), r"model\.earlier_keys"),
    Call(
        "a key of another word",
        edit(lambda: editkit.ROME(layers=[0], key="x"), count=1),  # type: ignore[arg-type]
        r"model\.key: expected 'averaged'",
    ),
]  # fmt: skip
