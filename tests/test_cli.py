"""The command line: flags from options and back, help, start-up."""

import random
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import get_origin

import pytest
from support.snakemake import environment

from dfshield import cli
from dfshield.options import PROFILES, StageOptions, flags
from dfshield.planning.choices import layer
from dfshield.planning.commands import ARGUMENTS, TOOLS
from dfshield.planning.stages import STAGES, options_of
from dfshield.registry import DEFENCES

OPTIONED = {name: stage.options for name, stage in STAGES.items() if stage.options}
CLASSES = {
    (stage, name): options.class_for(name or None)
    for stage, options in OPTIONED.items()
    for name in (options.entries[1] if options.entries else [""])
    if stage != "defend" or name == "identity" or DEFENCES[name].fitted
}
"""Classes of options by stage and registry entry; of defences those that the stage fits, and its default."""
OWN = {options: which for which, options in reversed(CLASSES.items())}
"""Every class once, with the first entry that has it."""
GRIDS = {"scales", "shifts", "powers"}
"""Options that hold one value at least."""
NEEDED = {("train", "vat"): {"threat": "l2:0.5"}}
"""What an entry does not go without."""
REQUIRED = {
    "teacher": ["--out", "o"],
    "synthesize": ["--teacher", "t", "--out", "o"],
    "generate": ["--teacher", "t", "--out", "o"],
    "augment": ["--data", "d", "--out", "o"],
    "diversity": ["--teacher", "t", "--data", "d", "--out", "o"],
    "train": ["--teacher", "t", "--data", "d", "--out", "o"],
    "cotrain": ["--teacher", "t", "--out", "o"],
    "public": ["--teacher", "t", "--out", "o"],
    "defend": ["--model", "m", "--teacher", "t", "--data", "d", "--threat", "linf:0.1", "--out", "o"],
    "attack": ["--model", "m", "--out", "o"],
    "certify": ["--model", "m", "--out", "o"],
    "detect": ["--model", "m", "--data", "d", "--out", "o"],
    "checks": ["--model", "m", "--out", "o"],
    "landscape": ["--model", "m", "--out", "o"],
}


def given(stage: str, words: list[str]) -> StageOptions:
    """The options that the words of a command give, without a profile."""
    words = [stage, *REQUIRED[stage], *words]
    return options_of(stage, flags.given_options(cli.parser(words).parse_args(words)), "options")


def made_of(which: tuple[str, str], **values) -> StageOptions:
    """Options of a stage and an entry, with some values."""
    stage, name = which
    entries = STAGES[stage].options.entries
    return STAGES[stage].options.of(**({entries[0]: name} if entries else {}), **NEEDED.get(which, {}) | values)


def fits(which: tuple[str, str], **values) -> bool:
    """Whether options go together."""
    try:
        made_of(which, **values)
    except ValueError:
        return False
    return True


def other(which: tuple[str, str], name: str, chance: random.Random) -> object:
    """A value of an option that is not its default; the default where no other goes with the entry."""
    options = CLASSES[which]
    field = options.model_fields[name]
    annotation, default = flags._base(field.annotation), field.default
    if name == "threat":
        return chance.choice([t for t in ("linf:3/255", "l2:0.25", "l2:128/255") if fits(which, threat=t)])
    if annotation is str:
        return "a folder/vgg16.pth" if name == "vgg16" else "17/255"
    if name == "l2_step":
        return "17/255"
    if annotation is bool:
        return not default
    if name == "through":
        return tuple(f"option_{chance.randint(1, 9)}=value" for _ in range(chance.randint(0, 3)))
    if get_origin(annotation) is tuple:
        return tuple(chance.random() for _ in range(chance.randint(1 if name in GRIDS else 0, 3)))
    if choices := flags._choices(annotation):  # vgg16 would need its weights, some objectives another loss
        return chance.choice([c for c in choices if c != default and fits(which, **{name: c})] or [default])
    if name == "rounds":  # which has a most
        return default - chance.randint(1, 9)
    if name == "bits":  # likewise
        return default - chance.randint(1, 3)
    if annotation is int:
        values = default + chance.randint(1, 9), 304, default + 1, default + 2  # a least, multiples of 8, a most, odd
        return next((v for v in values if fits(which, **{name: v})), values[0])
    assert annotation is float, (name, annotation)
    if name in ("far", "adaptation"):  # the least of which is near, and a factor of growth
        return 1 + chance.random() / 2
    values = 1e-7, 1 / 3, 0.25, chance.random() / 2
    return chance.choice([v for v in values if fits(which, **{name: v})] or [0.75])  # some have a least value


def entry_field(stage: str) -> str:
    """The option that names an entry; empty for a stage without."""
    entries = STAGES[stage].options.entries
    return entries[0] if entries else ""


@pytest.mark.parametrize("which", OWN.values(), ids=" ".join)
@pytest.mark.parametrize("seed", range(3))
def test_flags_round_trip(which, seed):
    chance, options, stage = random.Random(seed), CLASSES[which], which[0]
    names = [n for n in options.model_fields if n != entry_field(stage) and (seed == 0 or chance.random() < 0.5)]
    values = NEEDED.get(which, {}) | {n: other(which, n, chance) for n in names}
    if stage == "synthesize":
        values["images"] = 35 * values.get("batch", 200)
    for name in (
        "reestimate",
        "search",
        "epochs",
        "warmup",
        "trained_time",
        "time",
        "sampling_steps",
    ):  # each fits, but not with all others
        if not fits(which, **values):
            values.pop(name, None)
    made = made_of(which, **values)
    words = flags.as_flags(made)
    assert given(stage, words) == made
    assert type(given(stage, words)) is options
    told = {flags.flag_of(n) for n in options.model_fields if flags.flag_of(n) in words}
    assert told <= {flags.flag_of(n) for n in (*values, entry_field(stage))}
    assert given(stage, words).model_dump() == made.model_dump()


@pytest.mark.parametrize(
    ("which", "name"),
    [
        (which, name)
        for options, which in OWN.items()
        for name in (options.model_fields if options is STAGES[which[0]].options else options.__annotations__)
        if name in options.model_fields and name != entry_field(which[0])
    ],
)
def test_every_option_has_a_flag_of_its_own(which, name):
    value = other(which, name, random.Random(1))
    values = {name: 35 * 200 if name == "images" else value}
    if name == "batch" and which[0] == "synthesize":
        values["images"] = 35 * values["batch"]
    made = made_of(which, **values)
    assert getattr(made, name) != CLASSES[which].model_fields[name].default
    assert given(which[0], flags.as_flags(made)) == made


def test_flags_that_are_on_can_be_put_off():
    class Switched(StageOptions):
        light: bool = True
        """whether there is light"""

    assert flags.as_flags(Switched(light=False)) == ["--no-light"]
    parser = flags.Parser()
    flags.add_options(parser, Switched)
    assert vars(parser.parse_args(["--no-light"])) == {"option_light": False}
    assert vars(parser.parse_args([])) == {}


@pytest.mark.parametrize("which", CLASSES, ids=" ".join)
def test_defaults_are_those_of_the_options(which):
    stage, name = which
    chosen = [flags.flag_of(entry_field(stage)), name] if name else []
    needed = [word for key, value in NEEDED.get(which, {}).items() for word in (flags.flag_of(key), value)]
    assert flags.as_flags(made_of(which)) == chosen + needed
    assert given(stage, chosen + needed) == made_of(which)


@pytest.mark.parametrize("stage", OPTIONED)
def test_without_an_entry_a_stage_takes_its_default(stage):
    options = STAGES[stage].options
    assert given(stage, []) == options.of()
    name = options.model_fields[entry_field(stage)].default if options.entries else ""
    assert type(given(stage, [])) is CLASSES[stage, name]


@pytest.mark.parametrize(
    ("target", "words", "told"),
    [
        ("dfshield.sources.inversion.run", ["synthesize"], {"images": 1000, "randomise": "all"}),
        ("dfshield.training.train.run", ["train"], {"temperature": 3.0, "nesterov": False}),
        ("dfshield.training.train.run", ["train"], {"loss": "trades", "epochs": 7}),
    ],
    ids=["synthesize", "train", "another-loss"],
)
def test_a_profile_changes_defaults_and_flags_win(monkeypatch, tmp_path, target, words, told):
    monkeypatch.chdir(tmp_path)
    (stage,), found = words, {}
    monkeypatch.setattr(target, lambda **values: found.update(values))

    def run(values):
        cli.main([stage, *REQUIRED[stage], "--profile", "repo", *values])
        return found["options"]

    images = {"images": 1000} if stage == "synthesize" else {}
    name = told.get(entry_field(stage), STAGES[stage].options.model_fields[entry_field(stage)].default)
    repo = layer(PROFILES["repo"][stage], stage, name)
    plain = [word for key, value in images.items() for word in (flags.flag_of(key), str(value))]
    chosen = [flags.flag_of(entry_field(stage)), name]
    assert run(plain + chosen) == STAGES[stage].options.of(**{entry_field(stage): name} | repo | images)
    switches = {True: "--{}", False: "--no-{}"}
    flagged = []
    for key, value in told.items():
        flag = flags.flag_of(key)
        flagged += [switches[value].format(flag[2:])] if isinstance(value, bool) else [flag, str(value)]
    assert run(flagged) == STAGES[stage].options.of(**repo | told)


def help_of(capsys, *words: str) -> str:
    """A help text without its line breaks."""
    with pytest.raises(SystemExit) as done:
        cli.main([*words, "--help"])
    assert done.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("which", OWN.values(), ids=" ".join)
def test_help_has_every_option_and_its_default(capsys, monkeypatch, which):
    monkeypatch.setenv("COLUMNS", "1000")  # no breaks within words
    stage, name = which
    text = help_of(capsys, stage, *([flags.flag_of(entry_field(stage)), name] if name else []))
    texts = CLASSES[which].help_texts()
    for option, field in CLASSES[which].model_fields.items():
        default = f" (default: {flags._text(field.default)}"
        shown = " ".join((texts[option] + default).split())
        assert re.search(rf"{flags.flag_of(option)}\b[^()]* {re.escape(shown)}[;)]", text), option


def test_help_has_the_options_of_the_chosen_entry_alone(capsys):
    plain = help_of(capsys, "attack")
    pgd = help_of(capsys, "attack", "--attack", "pgd")
    fgsm = help_of(capsys, "attack", "--attack=fgsm")
    assert "--steps STEPS steps (default: 10)" in pgd and "--restarts RESTARTS" in pgd
    assert not re.search("--(steps|restarts)", fgsm) and "--steps" not in plain  # AutoAttack is the default
    assert "--version" in plain and "--version" not in pgd + fgsm
    for text in (plain, pgd, fgsm):
        assert "--limit LIMIT" in text and "--attack NAME --help shows the options of NAME." in text


@pytest.mark.parametrize("stage", [stage for stage, options in OPTIONED.items() if options.entries])
def test_help_says_what_each_entry_is(capsys, stage):
    text = help_of(capsys, stage)
    field, known = STAGES[stage].options.entries
    assert f"{flags.flag_of(field)} is one of:" in text
    for name, entry in known.items():
        assert entry.about, name
        assert f" {name} {' '.join(entry.about.split())}" in text


def test_an_option_of_another_entry_is_refused(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["attack", *REQUIRED["attack"], "--attack", "fgsm", "--steps", "3"])
    assert done.value.code == 2
    assert "unrecognized arguments: --steps 3" in capsys.readouterr().err


@pytest.mark.parametrize("command", ARGUMENTS)
def test_every_command_and_argument_has_help(capsys, command):
    about = STAGES[command].about if command in STAGES else TOOLS[command][0]
    assert f"{command} {about}" in help_of(capsys)
    (commands,) = cli.parser([command])._subparsers._group_actions
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
        def run(**arguments):
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
    for _ in range(12):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert "HEAVY []" in done.stdout
    assert min(spent) < 0.5


@pytest.mark.parametrize("text", ["tte", '{"defence": "tte", "crops": 2}'])
def test_a_defence_is_a_name_or_json(text):
    (argument,) = [one for one in ARGUMENTS["attack"] if one.parameter == "defence"]
    assert argument.convert(text).defence == "tte"


@pytest.mark.slow
def test_locales_without_greek_letters(tmp_path):
    """ε in help and errors comes out as its code where the locale has no such letter."""
    plain = environment() | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    for words, status in (
        (["attack", "--help"], 0),
        (["attack", "--model", "x", "--out", "y", "--threat", "linf:8"], 2),
    ):
        command = [sys.executable, "-m", "dfshield", *words]
        run = subprocess.run(command, cwd=tmp_path, env=plain, capture_output=True, text=True, check=False)
        assert run.returncode == status and r"\u03b5" in run.stdout + run.stderr, run.stderr
