"""Settings of editors, data, evaluation and Trainer, and YAML: checked before a model is read."""

from __future__ import annotations

from hostile import Call, Command

import editkit
from editkit.editors.closed_form.search import ValueSearch

FIT = (
    "fit --model.second_moment.path=$moments --model.second_moment.num_tokens=8000 --model.values.num_steps=2 "
    "--data.num_facts=2 --run_dir=run --trainer.enable_progress_bar=false "
)
VALIDATE = "validate --data.num_facts=2 --run_dir=run --trainer.enable_progress_bar=false "
COVARIANCE = "covariance --second_moment.num_tokens=3000 --second_moment.path=m --trainer.enable_progress_bar=false "

EDITOR = {
    "layers=[]": r"model\.layers: expected at least one block",
    "layers=[0,0]": r"model\.layers: expected blocks in ascending order, each once, .*write \[0\]",
    "layers=[1,0]": r"model\.layers: expected blocks in ascending order.*write \[0, 1\]",
    "layers=[-1]": r"model\.layers: expected at least one block, counted from 0",
    "layers=[9]": r"layers: expected blocks 0 to 3",
    "layers=[true]": r"model\.layers: expected an integer",
    "layers=[0.5]": r"model\.layers: expected an integer",
    "ridge=-1": r"model\.ridge: expected a number >= 0",
    "ridge=nan": r"model\.ridge: expected a number >= 0",
    "ridge=inf": r"model\.ridge: expected a finite number",
    "preservation_weight=0": r"model\.preservation_weight: expected a number > 0",
    "preservation_weight=inf": r"model\.preservation_weight: expected a finite number",
    "earlier_keys=inf": r"model\.earlier_keys: expected a finite number",
    "earlier_keys=1": r"model\.earlier_keys: independent batches know of no earlier ones",
    "dependent=maybe": r"model\.dependent",
    "dtype=float64": r"dtype: expected one of float32",
    "values.num_steps=0": r"values\.num_steps: expected a number > 0",
    "values.num_steps=1": r"values\.num_steps: expected at least 2",
    "values.kl_prompt=x": r"values\.kl_prompt: expected one \{\}",
    "values.kl_prompt='{} {}'": r"values\.kl_prompt: expected one \{\}",
    "values.clamp=inf": r"values\.clamp: expected a finite number",
    "values.loss_threshold=inf": r"values\.loss_threshold: expected a finite number",
    "values.context_templates=[]": r"values\.context_templates: expected groups of at least one template",
    "values.context_templates=[[]]": r"values\.context_templates: expected groups of at least one template",
    "values.context_templates=[[x]]": r"values\.context_templates: expected one \{\}",
    "values.template_tokens=300": r"values\.template_tokens: .*context window of 256",
    "values.max_tokens=0": r"values\.max_tokens",
    "values.seed=-1": r"values\.seed: expected 0 to",
    "values.seed=99999999999999999999": r"values\.seed: expected 0 to",
    "optimizer.lr=0": r"model\.optimizer\.lr: expected a finite number > 0",
    "optimizer.lr=-1": r"model\.optimizer: .*learning rate",
    "optimizer.lr=.nan": r"model\.optimizer: .*learning rate",
    "optimizer.lr=.inf": r"model\.optimizer\.lr: expected a finite number > 0",
    "optimizer=torch.optim.LBFGS": r"model\.optimizer: .*closure",
    "spread=torch.nn.Linear": r"model\.spread",
}
TRAINER = {
    "limit_train_batches=0": r"trainer\.limit_train_batches: expected null or 1\.0",
    "limit_train_batches=2": r"trainer\.limit_train_batches",
    "limit_val_batches=2": r"trainer\.limit_val_batches",
    "limit_val_batches=0.5": r"trainer\.limit_val_batches",
    "limit_val_batches=-1": r"trainer\.limit_val_batches",
    "max_epochs=0": r"trainer\.max_epochs: expected -1 or the number of batches",
    "max_epochs=-5": r"trainer\.max_epochs",
    "max_steps=0": r"trainer\.max_steps: expected -1",
    "max_steps=1": r"trainer\.max_steps",
    "max_time=00:00:00:01": r"trainer\.max_time",
    "fast_dev_run=true": r"trainer\.fast_dev_run",
    "fast_dev_run=3": r"trainer\.fast_dev_run",
    "overfit_batches=1": r"trainer\.overfit_batches",
    "overfit_batches=0.5": r"trainer\.overfit_batches",
    "check_val_every_n_epoch=2": r"trainer\.check_val_every_n_epoch",
    "val_check_interval=3": r"trainer\.val_check_interval",
    "accumulate_grad_batches=2": r"trainer\.accumulate_grad_batches",
    "gradient_clip_val=1": r"trainer\.gradient_clip_val",
    "reload_dataloaders_every_n_epochs=0": r"trainer\.reload_dataloaders_every_n_epochs",
    "num_sanity_val_steps=2": r"trainer\.num_sanity_val_steps",
    "use_distributed_sampler=true": r"trainer\.use_distributed_sampler",
    "enable_checkpointing=true": r"trainer\.enable_checkpointing",
    "barebones=true": r"trainer\.barebones",
    "profiler=nonsense": r"trainer: .*profiler",
    "precision=64": r"trainer\.precision: expected null or 32 or 32-true, but got 64; .*model\.dtype",
    "precision=16-mixed": r"trainer\.precision",
    "precision=bf16-true": r"trainer\.precision",
    "accelerator=tpu": r"trainer\.accelerator: expected one that this machine has, auto or .*cpu",
    "accelerator=nonsense": r"trainer\.accelerator: expected one that this machine has",
    "accelerator=cpu --trainer.devices=0": r"trainer: .*devices",
    "accelerator=cpu --trainer.devices=[0]": r"trainer: .*devices",
    "accelerator=cpu --trainer.devices=999": r"trainer\.devices: expected at most \d+ processes",
    "strategy=deepspeed": r"trainer\.strategy: expected auto or ddp",
    "num_nodes=0": r"trainer: .*num_nodes",
}
MEASURED = {
    "evaluation.protocol=nope": r"protocol: expected one of",
    "evaluation.protocol.top_k=0": r"top_k",
    "evaluation.protocol.seed=-1": r"seed",
    "report.samples=-1": r"report\.samples",
    "report.sample_tokens=0": r"report\.sample_tokens",
    "data.batch_size=0": r"data\.batch_size",
    "data.batch_size=5": r"data\.batch_size: expected at most the run's 2 facts",
    "data.num_facts=99999": r"data\.num_facts: expected at most",
    "data.facts_per_step=0": r"data\.facts_per_step",
    "data.split=nope": r"data\.split",
    "run_dir=file": r"run_dir: expected a folder that can be written",
    "run_dir=file/below": r"run_dir: expected a folder that can be written",
    "run_dir=/proc/nowhere": r"run_dir: expected a folder that can be written",
    "run_dir=~nobody-of-this-name/x": r"run_dir: expected a path",
    "run_dir=" + "x" * 300: r"run_dir: expected a path, .*too long",
    "seed_everything=-5": r"seed_everything: expected 0 to",
    "ckpt_path=x": r"unrecognized arguments: --ckpt_path",
    "weights_only=true": r"unrecognized arguments: --weights_only",
}
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{now}: &{now} [{','.join([f'*{before}'] * 9)}]\n" for before, now in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML: dict[str, tuple[str | bytes, str]] = {
    "binary": (b"\x7fELF\x00\xff\xfe" * 50, r"config: c\.yaml: expected YAML in UTF-8"),
    "UTF-16": ("data: {num_facts: 2}\n".encode("utf-16"), r"config: c\.yaml: expected YAML in UTF-8"),
    "NUL": (b"\0\0\0", r"config: c\.yaml: expected YAML, but it cannot be read"),
    "a billion laughs": (LAUGHS + "model: *i\n", r"config: c\.yaml, line 6: expected at most 100,000 values"),
    "a list in itself": ("data: &a [*a]\n", r"config: c\.yaml, line 1: .*\*a holds itself"),
    "a mapping in itself": ("model: &a {x: *a}\n", r"config: c\.yaml, line 1: .*\*a holds itself"),
    "deep lists": ("[" * 5000 + "]" * 5000, r"config: c\.yaml, line 1: .*nested at most 100 deep"),
    "deep mappings": ("".join(" " * i + "a:\n" for i in range(400)), r"config: c\.yaml, line 101: .*nested at most"),
    "a list": ("- a\n- b\n", r"config: c\.yaml: expected names with values, but got \['a', 'b'\]"),
    "a word": ("just text\n", r"config: c\.yaml: expected names with values"),
    "nothing": ("", r"config: c\.yaml: expected names with values, but got nothing"),
    "a name twice": ("data:\n  num_facts: 2\n  num_facts: 3\n", r"config: c\.yaml, line 3: .*'num_facts' twice"),
    "a section twice": ("data: {num_facts: 2}\ndata: {seed: 3}\n", r"config: c\.yaml, line 2: .*'data' twice"),
    "a tag": ("data: !!python/object/apply:os.system ['touch x']\n", r"config: c\.yaml: .*cannot be read"),
    "two documents": ("data: {seed: 2}\n---\ndata: {seed: 3}\n", r"config: c\.yaml: .*cannot be read"),
    "a bracket open": ("data: {num_facts: 2\n", r"config: c\.yaml: .*cannot be read"),
    "a number for a name": ("5: 6\n", r"Key must be a string"),
}
CLASSES = {
    "editkit.Editor": r"model: .*Editor is the base of editors and makes no edit",
    "editkit.ClosedFormEditor": r"model: .*ClosedFormEditor is the base of closed forms and has no solve",
    "editkit.edit": r"model: expected an editor",
    "torch.nn.Linear": r"model: expected an editor",
    "nosuchmodule.Thing": r"model: expected an editor, .*nosuchmodule",
    "editkit.Nope": r"model: expected an editor, .*Nope",
}
CONFIG = "model: {class_path: editkit.ROME}\ndata: {}\nweight_update: {}\nevaluation: {}\nreport: {}\n"


def _rows(command: str, prefix: str, options: dict[str, str], name: str) -> list[Command]:
    return [
        Command(f"{name} {option[:48]}", f"{command}--{prefix}{option}", line, {"file": "x"})
        for option, line in options.items()
    ]


ROWS = [
    *_rows(FIT, "model.", EDITOR, "fit"),
    *_rows(FIT, "trainer.", TRAINER, "fit"),
    *_rows(FIT, "", MEASURED, "fit"),
    *_rows(VALIDATE, "", MEASURED, "validate"),
    *_rows(
        VALIDATE,
        "trainer.",
        {"limit_val_batches=0": r"trainer\.limit_val_batches", "precision=64": r"trainer\.precision"},
        "validate",
    ),
    *_rows(
        COVARIANCE,
        "trainer.",
        {
            "limit_predict_batches=0": r"trainer\.limit_predict_batches",
            "fast_dev_run=true": r"trainer\.fast_dev_run.*num_tokens",
            "precision=64": r"trainer\.precision: .*give dtype",
            "accelerator=tpu": r"trainer\.accelerator",
            "accelerator=cpu --trainer.devices=0": r"trainer: .*devices",
        },
        "covariance",
    ),
    *_rows(
        COVARIANCE,
        "",
        {
            "layers=[]": r"layers: expected at least one block",
            "layers=[0,0]": r"layers: expected blocks in ascending order",
            "layers=[9]": r"layers: expected blocks 0 to 3",
            "layers=[-1]": r"layers: expected at least one block",
        },
        "covariance",
    ),
    *(
        Command(f"fit with YAML: {name}", f"{FIT}--config=c.yaml", line, {"c.yaml": y})
        for name, (y, line) in YAML.items()
    ),
    *(
        Command(
            f"covariance with YAML: {name}", f"{COVARIANCE}--config=c.yaml", YAML[name][1], {"c.yaml": YAML[name][0]}
        )
        for name in ("binary", "a billion laughs", "a list in itself", "deep lists", "a list")
    ),
    Command(
        "a billion laughs on the line",
        f"{FIT}--data='{{{LAUGHS.replace(chr(10), ',')}}}'",
        r"data, line 1: .*100,000 values",
    ),
    Command("deep lists on the line", f"{FIT}--model.layers={'[' * 3000}", r"model\.layers, line 1: .*nested at most"),
    Command("a list in itself on the line", f"{FIT}--model.layers='&a [*a]'", r"model\.layers, line 1: .*holds itself"),
    Command(
        "a name twice on the line",
        f"{FIT}--model.values='{{seed: 1, seed: 2}}'",
        r"model\.values, line 1: .*'seed' twice",
    ),
    Command(
        "a section that is no YAML",
        f"{FIT}--data=d.yaml",
        r"data: d\.yaml: expected YAML in UTF-8",
        {"d.yaml": b"\xff"},
    ),
    Command("a config in nobody's home", f"{FIT}--config=~nobody-of-this-name/x", r"config: expected a path"),
    *(Command(f"fit by {name}", f"{FIT}--model={name}", line) for name, line in CLASSES.items()),
    Command(
        "a class that YAML names",
        f"{FIT}--config=c.yaml",
        CLASSES["editkit.Editor"],
        {"c.yaml": "model: {class_path: editkit.Editor}"},
    ),
    Command(
        "runs that is a file",
        FIT.replace("--run_dir=run", ""),
        r"run_dir: expected a folder that can be written",
        {"runs": "x"},
    ),
    # run folders
    Command(
        "another run's folder with rows",
        FIT,
        r"run_dir: expected the settings",
        {"run/config.yaml": CONFIG, "run/records/before.jsonl": "{}"},
    ),
    Command(
        "another run's folder with a batch",
        FIT,
        r"run_dir: expected the settings",
        {"run/config.yaml": CONFIG, "run/edits/batch_00000.safetensors": ""},
    ),
    Command(
        "another run's folder with a thesis",
        FIT,
        r"run_dir: expected the settings",
        {"run/config.yaml": CONFIG, "run/thesis.tex": ""},
    ),
    Command("a run's folder with a broken config", FIT, r"run_dir: .*cannot be read", {"run/config.yaml": b"\xff\0"}),
    Command("a folder of something else's config", FIT, r"run_dir: .*has no model", {"run/config.yaml": "a: 1"}),
    Command("a run's folder whose config laughs", FIT, r"run_dir: .*cannot be read", {"run/config.yaml": LAUGHS}),
    Command(
        "a folder whose run came to nothing",
        FIT,
        r"run folder: run",
        {"run/config.yaml": CONFIG, "run/logs/metrics.csv": "a"},
        code=0,
    ),
    # in Python nothing checks types
    Call(
        "a negative ridge",
        lambda *_: editkit.EMMET(ridge=-1.0).check_settings(),
        r"model\.ridge: expected a number >=0",
    ),
    Call(
        "no steps",
        lambda *_: editkit.EMMET(values=ValueSearch(num_steps=0)).check_settings(),
        r"model\.values\.num_steps",
    ),
    Call(
        "a ridge that is no number",
        lambda *_: editkit.EMMET(ridge=float("nan")).check_settings(),
        r"model\.ridge: expected a finite",
    ),
    Call(
        "blocks twice",
        lambda *_: editkit.MEMIT(layers=[1, 1]).check_settings(),
        r"model\.layers: expected blocks in ascending",
    ),
]
