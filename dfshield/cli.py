"""The command line: one subcommand per stage, its options generated from the stage's option class.

Importing this module is cheap; a stage's own code is imported when it runs.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dfshield import __version__
from dfshield.core.errors import InputError
from dfshield.options import PROFILES, STAGES
from dfshield.options.flags import Parser, add_options, given_options
from dfshield.planning.config import load_config


def _teacher(a: argparse.Namespace) -> None:
    from dfshield.training.teacher import run

    run(
        out=a.out,
        options=given_options("teacher", a),
        dataset=a.dataset,
        model=a.model,
        data_dir=a.data_dir,
        factory=a.factory,
        arguments=_json(a.arguments, "--arguments"),
        weights=a.weights,
        input_shape=tuple(a.input_shape) if a.input_shape else None,
        classes=a.classes,
        mean=tuple(a.mean) if a.mean else None,
        std=tuple(a.std) if a.std else None,
        code=a.code,
    )


def _json(text: str | None, flag: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text) if text else None
    except ValueError as error:
        raise InputError(f"{flag}: not JSON ({error}); write for example '{{\"depth\": 20}}'") from None
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{flag}: must be a JSON object of keyword arguments, such as '{{\"depth\": 20}}'")
    return value


def _synthesize(a: argparse.Namespace) -> None:
    options = given_options("synthesis", a)
    from dfshield.sources.inversion import run

    run(a.teacher, a.out, options, a.shard, a.shards, a.source, a.factory, a.state, a.code)


def _export(a: argparse.Namespace) -> None:
    from dfshield.sources.real import export

    export(dataset=a.dataset, data_dir=a.data_dir, out=a.out, teacher=a.teacher, source=a.source, code=a.code)


def _public(a: argparse.Namespace) -> None:
    options = given_options("public", a)
    from dfshield.sources.public import run

    run(a.teacher, a.out, options, a.data_dir, a.source, a.code)


def _merge(a: argparse.Namespace) -> None:
    from dfshield.sources.trainset import merge

    merge(a.shards, a.out)


def _generate(a: argparse.Namespace) -> None:
    options = given_options("generation", a)
    from dfshield.sources.generator import run

    run(a.teacher, a.out, options, a.source, a.factory, a.state, a.code)


def _augment(a: argparse.Namespace) -> None:
    options = given_options("augmentation", a)
    from dfshield.sources.augmentation import run

    run(a.data, a.out, options, a.source, a.code)


def _diversity(a: argparse.Namespace) -> None:
    options = given_options("diversity", a)
    from dfshield.evaluation.diversity import run

    run(a.teacher, a.data, a.out, options, a.dataset, a.data_dir, a.factory, a.code)


def _train(a: argparse.Namespace) -> None:
    options = given_options("training", a)
    from dfshield.training.train import run

    run(a.teacher, a.data, a.out, options, a.recipe, a.factory, a.state, a.metrics, a.code)


def _cotrain(a: argparse.Namespace) -> None:
    options = given_options("cotraining", a)
    from dfshield.baselines.cotrain import run

    run(a.teacher, a.out, options, a.recipe or options.method, a.factory, a.state, a.metrics, a.code)


def _attack(a: argparse.Namespace) -> None:
    options = given_options("attack", a)
    from dfshield.evaluation.attack import run

    run(
        model_path=a.model,
        out=a.out,
        options=options,
        dataset=a.dataset,
        data_dir=a.data_dir,
        evaluation_npz=a.evaluation,
        factory=a.factory,
        protocol=a.protocol,
        subject=_json(a.subject, "--subject") or {},
        state=a.state,
        code=a.code,
    )


def _table(a: argparse.Namespace) -> None:
    from dfshield.planning.plan import Plan
    from dfshield.report.table import run

    run(Plan.of(load_config(a.config)), a.table, a.out)


def _cost(a: argparse.Namespace) -> None:
    from dfshield.planning.plan import Plan
    from dfshield.report.cost import run

    run(Plan.of(load_config(a.config)), a.out)


def _harden(a: argparse.Namespace) -> None:
    from dfshield.planning.plan import Plan
    from dfshield.report.model_card import run

    run(Plan.of(load_config(a.config)), a.name, a.student, a.out)


def _inspect(a: argparse.Namespace) -> None:
    from dfshield.tools.inspect import run

    run(a.file, a.sheet)


def _verify(a: argparse.Namespace) -> None:
    from dfshield.tools.verify import verify

    sys.exit(verify(a.table))


def _estimate(a: argparse.Namespace) -> None:
    from dfshield.planning.plan import Plan
    from dfshield.tools.estimate import run

    plan = Plan.of(load_config(a.config))
    if not (a.workers > 0 and 0 <= a.robust <= 1):
        raise InputError("--workers must be at least 1 and --robust between 0 and 1")
    print(run(plan, a.targets, a.benchmarks, a.workers, a.robust))


def _schema(a: argparse.Namespace) -> None:
    from dfshield.planning.schema import schema_text

    sys.stdout.write(schema_text())


def _doctor(a: argparse.Namespace) -> None:
    from dfshield.tools.doctor import run

    sys.exit(run(a.data_dir))


Setup = Callable[[argparse.ArgumentParser], None]


def _file(*names: str, help: str, required: bool = True, **settings: Any) -> Setup:
    def add(parser: argparse.ArgumentParser) -> None:
        if names[0].startswith("-"):
            settings.update(required=required, default=argparse.SUPPRESS if required else None)
        parser.add_argument(*names, type=Path, help=help, **settings)

    return add


def _value(name: str, help: str, **settings: Any) -> Setup:
    default = settings.setdefault("default", None)
    shown = f" (default: {default})" if default not in (None, "", argparse.SUPPRESS) else ""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(name, help=help + shown, **settings)

    return add


OUT = _file("--out", help="file to write")
TEACHER = _file("--teacher", help="teacher checkpoint")
STATE = _file("--state", required=False, help="folder for resuming after a crash; removed on success")
FACTORY = _value("--factory", "your model's package.module:function or file.py:function, for your own models")
DATA_DIR = _file("--data-dir", required=False, help="folder of real data and weights (DFSHIELD_DATA wins; else ./data)")
CODE = _value("--code", "digest of the stage's code, recorded in the output", default="")
PROFILE = _value("--profile", "defaults of the paper's text or of its released code", default="paper",
                 choices=list(PROFILES))  # fmt: skip

COMMANDS: dict[str, tuple[str, str | None, Callable[[argparse.Namespace], None], tuple[Setup, ...]]] = {
    "teacher": (
        "train a teacher on real data, or import a trained one",
        "teacher",
        _teacher,
        (
            OUT,
            _value("--dataset", "data set; for your own model any name", default="custom"),
            _value("--model", "model; for your own model any name", default="custom"),
            DATA_DIR,
            FACTORY,
            _value("--arguments", "keyword arguments of the factory as JSON"),
            _file("--weights", required=False, help="your model's .safetensors or state dict"),
            _value("--input-shape", "your model's channels, height, width", type=int, nargs=3),
            _value("--classes", "your model's number of classes", type=int),
            _value("--mean", "your model's normalisation mean per channel, pixels in [0,1]", type=float, nargs="+"),
            _value("--std", "your model's normalisation standard deviation per channel", type=float, nargs="+"),
            CODE,
        ),
    ),
    "synthesize": (
        "make one shard of surrogate data out of a teacher",
        "synthesis",
        _synthesize,
        (
            TEACHER,
            OUT,
            _value("--shard", "index of this shard", type=int, default=0),
            _value("--shards", "number of shards of the whole set", type=int, default=1),
            _value("--source", "name of this kind of data, recorded in the file", default="dss"),
            FACTORY,
            STATE,
            PROFILE,
            CODE,
        ),
    ),
    "export": (
        "write a real training set in the surrogate format, for the upper bound (not data-free)",
        None,
        _export,
        (
            OUT,
            _value("--dataset", "data set", required=True),
            DATA_DIR,
            TEACHER,
            _value("--source", "name of this kind of data, recorded in the file", default="real"),
            CODE,
        ),
    ),
    "public": (
        "write another real data set's images with the teacher's labels in the surrogate format (not data-free)",
        "public",
        _public,
        (
            TEACHER,
            OUT,
            DATA_DIR,
            _value("--source", "name of this kind of data, recorded in the file", default="public"),
            CODE,
        ),
    ),
    "merge": (
        "merge the shards of one surrogate set",
        None,
        _merge,
        (_file("shards", help="shard files, in any order", nargs="+"), OUT),
    ),
    "generate": (
        "make surrogate data by a generator that a teacher trains",
        "generation",
        _generate,
        (
            TEACHER,
            OUT,
            _value("--source", "name of this kind of data, recorded in the file", default="qimera"),
            FACTORY,
            STATE,
            CODE,
        ),
    ),
    "augment": (
        "derive training data from surrogate data by Mixup, Cutout or CutMix",
        "augmentation",
        _augment,
        (
            _file("--data", help="merged surrogate data to start from"),
            OUT,
            _value("--source", "name of this kind of data, recorded in the file", default="mixup"),
            CODE,
        ),
    ),
    "diversity": (
        "compare surrogate data with real images: precision, recall, density, coverage, NDB, JSD",
        "diversity",
        _diversity,
        (
            TEACHER,
            _file("--data", help="merged surrogate data"),
            OUT,
            _value("--dataset", "real data set; without it the teacher's own"),
            DATA_DIR,
            FACTORY,
            CODE,
        ),
    ),
    "train": (
        "adversarially fine-tune a copy of the teacher on surrogate data",
        "training",
        _train,
        (
            TEACHER,
            _file("--data", help="merged surrogate data"),
            OUT,
            _value("--recipe", "name of the recipe, recorded in the file", default="dfshield"),
            _file("--metrics", required=False, help="CSV of per-epoch metrics to write"),
            FACTORY,
            STATE,
            PROFILE,
            CODE,
        ),
    ),
    "cotrain": (
        "train a generator and a student together, by a method that has no training data (DaST, DFME, AIT, DFARD)",
        "cotraining",
        _cotrain,
        (
            TEACHER,
            OUT,
            _value("--recipe", "name of the recipe, recorded in the file; without it the method's"),
            _file("--metrics", required=False, help="CSV of per-epoch metrics to write"),
            FACTORY,
            STATE,
            CODE,
        ),
    ),
    "attack": (
        "attack a model on real images and write the evaluation ledger",
        "attack",
        _attack,
        (
            _file("--model", help="checkpoint to attack"),
            OUT,
            _value("--dataset", "data set to evaluate on"),
            _file("--evaluation", required=False, help="your own evaluation set, .npz with x and y"),
            DATA_DIR,
            _value("--protocol", "name of the protocol, recorded in the ledger", default="custom"),
            _value("--subject", "what is attacked, as JSON, recorded in the ledger"),
            FACTORY,
            STATE,
            CODE,
        ),
    ),
    "table": (
        "render one table of the paper from its ledgers and records, as CSV, Markdown and LaTeX",
        None,
        _table,
        (
            _value("table", "name of the table, such as table4", default=argparse.SUPPRESS),
            _file("--config", help="config of the run"),
            _file("--out", help="CSV to write; Markdown and LaTeX go beside it"),
        ),
    ),
    "cost": (
        "say what every method of table 4 takes: seconds as measured by Snakemake, arithmetic as counted",
        None,
        _cost,
        (
            _file("--config", help="config of the run"),
            _file("--out", help="CSV to write; Markdown and LaTeX go beside it"),
        ),
    ),
    "harden": (
        "write a hardened model with its report and model card",
        None,
        _harden,
        (
            _value("name", "entry under harden: of the config", default=argparse.SUPPRESS),
            _file("--config", help="config of the run"),
            _file("--student", help="trained student"),
            _file("--out", help="folder to write model.safetensors, report.csv and MODEL_CARD.md to"),
        ),
    ),
    "inspect": (
        "say what a shard, surrogate set, checkpoint, ledger or diversity record holds",
        None,
        _inspect,
        (
            _file("file", help="file to look into"),
            _file("--sheet", required=False, help="contact sheet to write (PNG)"),
        ),
    ),
    "verify": (
        "trace every cell of a table to ledger or record, student, data and teacher by hash",
        None,
        _verify,
        (_file("table", help="a table's CSV"),),
    ),
    "estimate": (
        "estimate jobs, time, GPU hours and disk before anything is run",
        None,
        _estimate,
        (
            _value("targets", "names of tables, or harden for your own models (default: all of the config)", nargs="*"),
            _file("--config", help="config of the run"),
            _file(
                "--benchmarks",
                required=False,
                help="report of `make bench` on the device that is asked about (default: the paper's own times)",
            ),
            _value("--workers", "devices that work at once", type=int, default=1),
            _value("--robust", "share of images expected to survive every attack", type=float, default=0.4),
        ),
    ),
    "schema": ("print the JSON schema of config files", None, _schema, ()),
    "doctor": ("check this machine: versions, devices, data", None, _doctor, (DATA_DIR,)),
}


def parser() -> Parser:
    """The whole command line."""
    top = Parser(prog="dfshield", description="Harden an image classifier against attack without its training data.")
    top.add_argument("--version", action="version", version=f"dfshield {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (summary, stage, function, setups) in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        for setup in setups:
            setup(sub)
        if stage:
            add_options(sub, STAGES[stage])
        sub.set_defaults(function=function)
    return top


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse places that cannot be written to before hours of work, not after."""
    folders = {"state", "out"} if arguments.command == "harden" else {"state"}
    for name in ("out", "metrics", "sheet", "state"):
        path: Path | None = getattr(arguments, name, None)
        if path is None:
            continue
        if name not in folders and path.is_dir():
            raise InputError(f"{path}: is a folder; give the path of a file to write")
        folder = path if name in folders else path.parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise InputError(f"{path}: cannot write there ({folder}: {error.strerror}); choose another place") from None


def main(words: Sequence[str] | None = None) -> None:
    """Entry point; exits with status 2 and one line on standard error where the input is wrong."""
    arguments = parser().parse_args(words)
    try:
        _check_outputs(arguments)
        arguments.function(arguments)
        sys.stdout.flush()
    except InputError as error:
        print(f"dfshield {arguments.command}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as in `dfshield inspect FILE | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
