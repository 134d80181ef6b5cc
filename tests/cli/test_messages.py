"""Old names of options are told by their new ones, on the command line and in YAML; nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from editkit.cli.main import main
from editkit.cli.messages import RENAMED, check_renamed
from editkit.utils.errors import InputError

RENAMES = [(command, old, new) for command, names in RENAMED.items() for old, new in names.items()]


def nested(name: str, value: str = "{path: moments}", init_args: bool = False) -> str:
    """A YAML mapping in which one dotted name has a value."""
    head, *parts = name.split(".")
    for part in reversed(parts):
        value = f"{{{part}: {value}}}"
    return f"{head}: {f'{{init_args: {value}}}' if init_args and parts else value}"


def told(argv: list[str]) -> str:
    with pytest.raises(InputError) as error:
        check_renamed(argv)
    return str(error.value)


@pytest.mark.parametrize(("command", "old", "new"), RENAMES)
def test_every_renamed_option_is_told(command: str, old: str, new: str, tmp_path: Path) -> None:
    line = f"{old}: renamed to {new}; write that"
    root, *rest = old.split(".")
    long = ".".join([root, "init_args", *rest])
    for typed in ([f"--{old}=1"], [f"--{old}", "1"], [f"--{old}.path=x"], [f"--{long}.path=x"]):
        assert told([command, "--config", "nowhere.yaml", *typed]) == line
    inner = nested(".".join(rest)) if rest else "path: x"
    if rest:
        assert told([command, f"--{root}={{{inner}}}"]) == line
        assert told([command, f"--{root}", f"{{init_args: {{{inner}}}}}"]) == line
    for init_args in (False, True):
        config = tmp_path / f"old-{init_args}.yaml"
        config.write_text(f"{nested(old, init_args=init_args)}\n", encoding="utf-8")
        for typed in (["--config", str(config)], [f"--config={config}"], ["-c", str(config)]):
            assert told([command, *typed]) == f"{line} in {config}"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fit"],
        ["fit", "--config"],
        ["fit", "--config", "nowhere.yaml"],
        ["fit", "--model.second_moment.path=moments", "--run_dir", "model.moments"],
        ["fit", "--model.momentsum=1", "--moments.path=x", "--model.values.moments=1"],
        ["covariance", "--second_moment.path=moments", "--lm=moments"],
        ["export", "--edits=moments", "--moments=1"],
    ],
)
def test_other_options_are_left_alone(argv: list[str]) -> None:
    check_renamed(argv)


@pytest.mark.parametrize("content", [b"{ not: [yaml", b"\xff\xfe\x00", b"", b"- 1\n- 2\n", b"model: editkit.EMMET\n"])
def test_what_is_no_config_is_left_to_the_parser(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    check_renamed(["fit", "--config", str(tmp_path / "config.yaml")])


OLD = {
    "option": ["fit", "--model.moments.path=moments"],
    "long option": ["validate", "--model.init_args.moments.path=moments"],
    "init_args": ["fit", "--config", "model: {class_path: editkit.EMMET, init_args: {moments: {path: moments}}}"],
    "short form": ["fit", "--config", "model: {moments: {path: moments}}"],
    "covariance option": ["covariance", "--moments.path=moments"],
    "covariance config": ["covariance", "--config", "moments: {path: moments}"],
}


@pytest.mark.parametrize("name", OLD)
def test_the_command_line_says_so_and_ends(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv, where = list(OLD[name]), ""
    if argv[1] == "--config":
        config = tmp_path / "old.yaml"
        config.write_text(argv[2], encoding="utf-8")
        argv[2], where = str(config), f" in {config}"
    prefix = "" if argv[0] == "covariance" else "model."
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error == f"editkit: error: {prefix}moments: renamed to {prefix}second_moment; write that{where}\n"


def test_an_editor_of_ones_own_may_have_an_argument_of_an_old_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "with_moments.py").write_text(
        "from editkit import EMMET\n"
        "class WithMoments(EMMET):\n"
        "    def __init__(self, moments: int = 1, **kwargs):\n"
        "        super().__init__(**kwargs)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["fit", "--model=with_moments.WithMoments", "--model.moments=4", "--model.nope=1"]) == 2
    assert "error: model.nope: " in capsys.readouterr().err  # what is wrong, not what is right
    with pytest.raises(SystemExit) as done:
        main(["fit", "--model=with_moments.WithMoments", "--model.moments=4", "--print_config"])
    assert done.value.code == 0
    assert "moments: 4" in capsys.readouterr().out
