"""The command line: flags from options and back, help, start-up."""

import random
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_origin

import pytest

from dfshield import cli
from dfshield.cli import COMMANDS
from dfshield.options import PROFILES, STAGES, StageOptions, flags

STAGE_COMMANDS = {stage: name for name, (_, stage, _, _) in COMMANDS.items() if stage}
REQUIRED = {
    "teacher": ["--out", "o"],
    "synthesize": ["--teacher", "t", "--out", "o"],
    "generate": ["--teacher", "t", "--out", "o"],
    "augment": ["--data", "d", "--out", "o"],
    "diversity": ["--teacher", "t", "--data", "d", "--out", "o"],
    "train": ["--teacher", "t", "--data", "d", "--out", "o"],
    "cotrain": ["--teacher", "t", "--out", "o"],
    "public": ["--teacher", "t", "--out", "o"],
    "attack": ["--model", "m", "--out", "o"],
}


def given(stage: str, words: list[str]) -> StageOptions:
    command = STAGE_COMMANDS[stage]
    return flags.given_options(stage, cli.parser().parse_args([command, *REQUIRED[command], *words]))


def other(options: type[StageOptions], name: str, chance: random.Random) -> object:
    """A value of an option that is not its default."""
    field = options.model_fields[name]
    annotation, default = flags._base(field.annotation), field.default
    if name == "threat":
        return chance.choice(["linf:3/255", "l2:0.25", "l2:128/255"])
    if name == "loss":
        return chance.choice(["std", "trades", "mart"])  # some others go with one threat or inner objective alone
    if name in ("l2_step", "rslad_alpha", "fosc_share"):
        return "17/255"
    if name == "vgg16":
        return "a folder/vgg16.pth"
    if name in ("features", "bin_features"):  # vgg16 would need its weights
        return next(choice for choice in ("teacher", "pixels") if choice != default)
    if annotation is bool:
        return not default
    if get_origin(annotation) is tuple:
        return tuple(chance.random() for _ in range(chance.randint(0, 3)))
    if choices := get_args(annotation) if flags._choices(annotation) else None:
        return chance.choice([choice for choice in choices if choice != default])
    if annotation is int:
        return default + chance.randint(1, 9)
    assert annotation is float, (name, annotation)
    if name == "intraq_far":  # the least of which is intraq_near
        return 1 + chance.random() / 2
    return chance.choice([1e-7, 1 / 3, 0.25, chance.random() / 2])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("seed", range(5))
def test_flags_round_trip(stage, seed):
    chance, options = random.Random(seed), STAGES[stage]
    names = [name for name in options.model_fields if seed == 0 or chance.random() < 0.5]
    values = {name: other(options, name, chance) for name in names}
    if stage == "synthesis":
        values["images"] = 35 * values.get("batch", 200)
    made = options(**values)
    words = flags.as_flags(made)
    assert given(stage, words) == made
    assert not any(f"--{name.replace('_', '-')}" in words for name in options.model_fields if name not in values)
    assert given(stage, words).model_dump() == made.model_dump()


@pytest.mark.parametrize(
    ("stage", "name"), [(stage, name) for stage, options in STAGES.items() for name in options.model_fields]
)
def test_every_option_has_a_flag_of_its_own(stage, name):
    value = other(STAGES[stage], name, random.Random(1))
    values = {name: 35 * 200 if name == "images" else value}
    if name == "batch" and stage == "synthesis":
        values["images"] = 35 * values["batch"]
    made = STAGES[stage](**values)
    assert getattr(made, name) != STAGES[stage].model_fields[name].default
    assert given(stage, flags.as_flags(made)) == made


def test_flags_that_are_on_can_be_put_off():
    class Switched(StageOptions):
        light: bool = True
        """whether there is light"""

    assert flags.as_flags(Switched(light=False)) == ["--no-light"]
    parser = flags.Parser()
    flags.add_options(parser, Switched)
    assert vars(parser.parse_args(["--no-light"])) == {"option_light": False}
    assert vars(parser.parse_args([])) == {}


@pytest.mark.parametrize("stage", STAGES)
def test_defaults_are_those_of_the_options(stage):
    assert flags.as_flags(STAGES[stage]()) == []
    assert given(stage, []) == STAGES[stage]()


@pytest.mark.parametrize("stage", ["synthesis", "training"])
def test_a_profile_changes_defaults_and_flags_win(stage):
    repo = PROFILES["repo"][stage]
    images = ["--images", "1000"] if stage == "synthesis" else []
    found = given(stage, ["--profile", "repo", *images])
    assert {name: getattr(found, name) for name in repo} == repo
    flag = {"synthesis": ["--randomise", "all"], "training": ["--temperature", "3", "--no-nesterov"]}[stage]
    found = given(stage, ["--profile", "repo", *images, *flag])
    if stage == "training":
        assert (found.temperature, found.nesterov, found.tie) == (3, False, "all")
    else:
        assert (found.randomise, found.batch) == ("all", 250)


def help_of(capsys, *words: str) -> str:
    """A help text without its line breaks."""
    with pytest.raises(SystemExit) as done:
        cli.main([*words, "--help"])
    assert done.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("stage", STAGES)
def test_help_has_every_option_and_its_default(capsys, monkeypatch, stage):
    monkeypatch.setenv("COLUMNS", "1000")  # no breaks within words
    text = help_of(capsys, STAGE_COMMANDS[stage])
    for name, field in STAGES[stage].model_fields.items():
        default = f" (default: {flags._text(field.default)}"
        flag = f"--{name.replace('_', '-')}"
        shown = " ".join((field.description + default).split())
        assert re.search(rf"{flag}\b[^()]* {re.escape(shown)}[;)]", text), name
    if stage == "cotraining":
        assert "mini-batch (default: 500; dfme 256, ait 200, dfard 256)" in text
        assert "(default: none; dfme 0.1 0.3 0.5, ait 0.25 0.5 0.75)" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_argument_has_help(capsys, command):
    assert f"{command} {COMMANDS[command][0]}" in help_of(capsys)
    (commands,) = cli.parser()._subparsers._group_actions
    for action in commands.choices[command]._actions:
        assert action.help, action.option_strings or action.dest


def test_options_are_never_abbreviated(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["train", *REQUIRED["train"], "--epoch", "3"])
    assert done.value.code == 2
    assert "unrecognized arguments: --epoch 3" in capsys.readouterr().err


def test_version(capsys):
    from dfshield import __version__

    with pytest.raises(SystemExit) as done:
        cli.main(["--version"])
    assert (done.value.code, capsys.readouterr().out) == (0, f"dfshield {__version__}\n")


def test_interruption_and_a_reader_that_left(monkeypatch, tmp_path):
    from dfshield.tools import inspect

    def raise_(error):
        def run(*arguments):
            raise error

        return run

    monkeypatch.setattr(inspect, "run", raise_(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as done:
        cli.main(["inspect", "x"])
    assert done.value.code == 130
    command = f"{sys.executable} -m dfshield schema | true"
    process = subprocess.run(
        command, shell=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False
    )
    assert (process.stdout, process.stderr) == ("", "")


def test_start_up_is_light():
    """Help in under half a second of CPU, without the libraries of the stages."""
    code = (
        "import sys, time\n"
        "from dfshield import cli\n"
        "try: cli.main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'h5py', 'pandas', 'numpy', 'matplotlib', 'torchvision', 'sklearn', 'scipy', 'snakemake'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert "HEAVY []" in done.stdout
    assert min(spent) < 0.5
