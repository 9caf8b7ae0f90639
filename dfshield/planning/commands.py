"""The commands of the command line as data: their arguments, and where the code of those that are no stages is."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfshield.core.errors import InputError
from dfshield.core.validation import build
from dfshield.options.common import StageOptions
from dfshield.options.defences import DefendOptions
from dfshield.options.privacy import PrivacyOptions
from dfshield.options.quality import QualityOptions


@dataclass(frozen=True)
class Argument:
    """A flag or a positional argument; its value goes to the parameter `to` of the function that runs."""

    name: str
    help: str
    to: str = ""
    required: bool = False
    convert: Callable[[Any], Any] | None = None
    """What becomes of the value, done after parsing: it may raise InputError."""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def parameter(self) -> str:
        """The parameter that takes the value."""
        return self.to or self.name.lstrip("-").replace("-", "_")

    def add(self, parser: argparse.ArgumentParser) -> None:
        """Add it to a parser."""
        settings = {"default": None, **self.settings}
        shown = f" (default: {settings['default']})" if settings["default"] not in (None, "") else ""
        if self.name.startswith("-"):
            settings |= {"dest": self.parameter, "required": self.required}
        else:
            settings |= {"metavar": self.settings.get("metavar", self.name)}
            del settings["default"]
        name = self.name if self.name.startswith("-") else self.parameter
        parser.add_argument(name, help=f"{self.help}{shown}".replace("%", "%%"), **settings)


def _file(name: str, help: str, to: str = "", required: bool = True, **settings: Any) -> Argument:
    return Argument(name, help, to, required, None, {"type": Path, **settings})


def _value(
    name: str, help: str, to: str = "", convert: Callable[[Any], Any] | None = None, **settings: Any
) -> Argument:
    return Argument(name, help, to, settings.pop("required", False), convert, settings)


def _json(flag: str) -> Callable[[str | None], dict[str, Any]]:
    def read(text: str | None) -> dict[str, Any]:
        try:
            value = json.loads(text) if text else {}
        except ValueError as error:
            raise InputError(f"{flag}: not JSON ({error}); write for example '{{\"depth\": 20}}'") from None
        if not isinstance(value, dict):
            raise InputError(f"{flag}: must be a JSON object, such as '{{\"depth\": 20}}'")
        return value

    return read


def _plan(path: Path) -> Any:
    from dfshield.planning import frozen  # not at the top: most commands read no config, and all would wait for it
    from dfshield.planning.config import load_config
    from dfshield.planning.plan import Plan

    if path.name == frozen.CONFIG:
        frozen.check_seal(path.parent)
    return Plan.of(load_config(path))


def _defence(text: str | None) -> Any:
    if not text:
        return None
    values = _json("--defence")(text) if text.startswith("{") else {"defence": text}
    return build(DefendOptions.class_for(values.get("defence")), values, "--defence")


def _others(pairs: list[str] | None) -> dict[str, Path]:
    found = {}
    for pair in pairs or ():
        name, equals, path = pair.partition("=")
        if not equals:
            raise InputError(f"--other {pair}: write NAME=CHECKPOINT, such as teacher=teacher.safetensors")
        found[name] = Path(path)
    return found


OUT = _file("--out", "file to write")
TEACHER = _file("--teacher", "teacher checkpoint")
DATA = _file("--data", "merged training set")
STATE = _file("--state", "folder for resuming after a crash; removed on success", required=False)
FACTORY = _value("--factory", "your model's package.module:function or file.py:function, for your own models")
DATA_DIR = _file("--data-dir", "folder of real data and weights (DFSHIELD_DATA wins; else ./data)", required=False)
FITTED = _file("--fitted", "what `dfshield defend` has written, for a defence that is fitted", required=False)
CODE = _value("--code", "digest of the stage's code, recorded in the output", default="")
METRICS = _file("--metrics", "CSV of per-epoch metrics to write", required=False)
CONFIG = Argument("--config", "config of the run", "plan", True, _plan, {"type": Path})
IMAGES = (
    _value("--dataset", "data set to evaluate on"),
    _file("--evaluation", "your own evaluation set, .npz with x and y", "evaluation_npz", required=False),
    DATA_DIR,
)
"""Real images, in every command that evaluates on them."""
TABLE_OUT = _file("--out", "CSV to write; Markdown, LaTeX and HTML go beside it")


def _source(name: str) -> Argument:
    return _value("--source", "name of this training set, recorded in the file", default=name)


ARGUMENTS: dict[str, tuple[Argument, ...]] = {
    "teacher": (
        OUT,
        _value("--dataset", "data set; for your own model any name", default="custom"),
        _value("--model", "model; for your own model any name", default="custom"),
        DATA_DIR,
        FACTORY,
        _value("--arguments", "keyword arguments of the factory as JSON", convert=_json("--arguments")),
        _file("--weights", "your model's .safetensors or state dict", required=False),
        _value("--input-shape", "your model's channels, height, width", type=int, nargs=3),
        _value("--classes", "your model's number of classes", type=int),
        _value("--mean", "your model's normalisation mean per channel, pixels in [0,1]", type=float, nargs="+"),
        _value("--std", "your model's normalisation standard deviation per channel", type=float, nargs="+"),
        STATE,
        CODE,
    ),
    "synthesize": (
        TEACHER,
        OUT,
        _value("--shard", "index of this shard", type=int, default=0),
        _value("--shards", "number of shards of the whole set", type=int, default=1),
        _source("dss"),
        FACTORY,
        _file(
            "--guide",
            "hardened student of this teacher whose class term counts as well; may be given again",
            "guides",
            required=False,
            action="append",
        ),
        STATE,
        CODE,
    ),
    "merge": (_file("shards", "shard files, in any order", "paths", nargs="+", metavar="SHARD"), OUT),
    "generate": (TEACHER, OUT, _source("qimera"), FACTORY, STATE, CODE),
    "augment": (_file("--data", "merged training set to start from", "base"), OUT, _source("mixup"), CODE),
    "export": (OUT, _value("--dataset", "data set", required=True), DATA_DIR, TEACHER, _source("real"), CODE),
    "public": (TEACHER, OUT, DATA_DIR, _source("public"), CODE),
    "train": (
        TEACHER,
        DATA,
        OUT,
        _value("--recipe", "name of the recipe, recorded in the file", default="dfshield"),
        METRICS,
        FACTORY,
        STATE,
        CODE,
    ),
    "cotrain": (
        TEACHER,
        OUT,
        _value("--recipe", "name of the recipe, recorded in the file; without it the method's", default=""),
        _file(
            "--images-out", "training set of the last generator's images to write, to look at", "images", required=False
        ),
        METRICS,
        FACTORY,
        STATE,
        CODE,
    ),
    "defend": (
        _file("--model", "checkpoint to defend", "model_path"),
        _file("--teacher", "checkpoint that it was hardened from, or itself if it was not"),
        DATA,
        OUT,
        _value("--threat", "threat model to fit for, NORM:EPS", required=True),
        FACTORY,
        CODE,
    ),
    "attack": (
        _file("--model", "checkpoint to attack", "model_path"),
        OUT,
        *IMAGES,
        _value("--protocol", "name of the protocol, recorded in the ledger", default="custom"),
        _value("--subject", "what is attacked, as JSON, recorded in the ledger", convert=_json("--subject")),
        _value("--defence", "defence at test time: its name, or its options as JSON", convert=_defence),
        FITTED,
        _value(
            "--other",
            "NAME=CHECKPOINT of another model that the attack uses (teacher, surrogate)",
            "others",
            _others,
            action="append",
        ),
        FACTORY,
        STATE,
        CODE,
    ),
    "certify": (
        _file("--model", "checkpoint to certify", "model_path"),
        _file("--out", "record to write, a JSON file; a CSV of certified accuracy by radius goes beside it"),
        *IMAGES,
        _value("--defence", "defence at test time: its name, or its options as JSON", convert=_defence),
        FITTED,
        FACTORY,
        CODE,
    ),
    "detect": (
        _file("--model", "checkpoint whose attacks are to be detected", "model_path"),
        _file("--data", "merged training set that the detector is fitted on"),
        OUT,
        *IMAGES,
        FACTORY,
        CODE,
    ),
    "checks": (
        _file("--model", "checkpoint to check", "model_path"),
        OUT,
        _file(
            "--ledger",
            "ledger of an attack on this checkpoint within the threat model; may be given again",
            "ledgers",
            required=False,
            action="append",
        ),
        *IMAGES,
        _value("--subject", "what is checked, as JSON, recorded in the file", convert=_json("--subject")),
        _value("--defence", "defence at test time: its name, or its options as JSON", convert=_defence),
        FITTED,
        _value(
            "--other", "surrogate=CHECKPOINT of another model, to transfer from", "others", _others, action="append"
        ),
        _file("--metrics", "CSV of per-epoch metrics that the checkpoint's training wrote", "history", required=False),
        FACTORY,
        CODE,
    ),
    "diversity": (
        TEACHER,
        DATA,
        OUT,
        _value("--dataset", "real data set; without it the teacher's own"),
        DATA_DIR,
        FACTORY,
        CODE,
    ),
    "landscape": (_file("--model", "checkpoint to measure", "model_path"), OUT, *IMAGES, FACTORY, CODE),
    "table": (_value("table", "name of the table, such as table4"), CONFIG, TABLE_OUT),
    "figure": (
        _value("figure", "name of the figure, such as front"),
        CONFIG,
        _file("--out", "PNG to write; SVG and the drawn data, CSV, go beside it"),
    ),
    "cost": (CONFIG, TABLE_OUT),
    "checklist": (
        _file("records", "records of robustness checks", "records", nargs="+", metavar="RECORD"),
        _file("--out", "CSV to write; Markdown goes beside it"),
    ),
    "card": (
        _value("name", "entry under harden: of the config"),
        CONFIG,
        _file("--student", "trained student"),
        _file("--out", "folder to write the model, its reports, its card with pictures and any mixture to"),
    ),
    "report": (CONFIG, _file("--out", "page of HTML to write")),
    "harden": (
        _file("--model", "your model: weights, an ONNX graph, TorchScript, .pt2, a folder of transformers", "weights"),
        _value("--factory", "network of weights alone: package.module:function or file.py:function"),
        _value("--arguments", "keyword arguments of the factory as JSON", convert=_json("--arguments")),
        _value("--input-shape", "its channels, height, width (default: what it states)", type=int, nargs=3),
        _value(
            "--mean", "its normalisation mean per channel, pixels in [0,1] (else stated, else 0)", type=float, nargs="+"
        ),
        _value(
            "--std", "its normalisation standard deviation per channel (else stated, else 1)", type=float, nargs="+"
        ),
        _value("--threat", "threat model to harden against, NORM:EPS", required=True),
        _value("--minutes", "time that the whole may take here, evaluation included", type=float, default=40.0),
        _file("--evaluation", "real images for the figures, .npz with x and y", required=False),
        _file(
            "--out",
            "folder of all that is made; the same command goes on where it was",
            "folder",
            False,
            default=Path("hardened"),
        ),
        _value("--name", "what to call the model", default="model"),
        _value("--seed", "random seed; everything random follows from it", type=int, default=0),
        _value(
            "--device",
            "cpu, cuda, or auto: CUDA where there is a device",
            default="auto",
            choices=["auto", "cpu", "cuda"],
        ),
        _value("--keep-accuracy", "also make its mixture with the original model", action="store_true", default=False),
    ),
    "quality": (
        _file("--model", "checkpoint that the defence stands before", "model_path"),
        _file("--out", "CSV of the measures by input; the record, a JSON file, goes beside it"),
        *IMAGES,
        _value("--defence", "defence at test time: its name, or its options as JSON", convert=_defence, required=True),
        FITTED,
        FACTORY,
    ),
    "privacy": (
        _file("--model", "checkpoint of the teacher", "model_path"),
        _file("--data", "training set of synthetic images"),
        _file("--training", "images that the classifier was trained on, .npz with x and y", "training_npz"),
        _file("--others", "images of the same kind that it was not trained on", "others_npz"),
        _file("--out", "CSV of the nearest real images of each synthetic one; the record, JSON, goes beside it"),
        FACTORY,
    ),
    "inspect": (
        _file("file", "file to look into"),
        _file("--sheet", "contact sheet to write (PNG)", required=False),
    ),
    "verify": (_file("table", "a table's CSV"),),
    "estimate": (
        _value("targets", "names of tables, or harden for your own models (default: all of the config)", nargs="*"),
        CONFIG,
        _file(
            "--benchmarks",
            "report of `make bench` on the device that is asked about (default: the paper's own times)",
            "report",
            required=False,
        ),
        _value("--workers", "devices that work at once", type=int, default=1),
        _value("--robust", "share of images expected to survive every attack", type=float, default=0.4),
    ),
    "export-csv": (
        _file("ledger", "ledger to read"),
        _file("--out", "CSV to write, one row per image; without it standard output", required=False),
    ),
    "schema": (),
    "doctor": (DATA_DIR,),
}
"""Arguments of every command besides its options, by the parameters of the function that runs."""

TOOLS = {
    "harden": (
        "harden a trained classifier of your own within some minutes, without a config",
        "dfshield.api.harden:command",
    ),
    "quality": (
        "compare what a classifier behind a defence sees with the images themselves: SSIM, PSNR, LPIPS",
        "dfshield.evaluation.quality:run",
    ),
    "privacy": (
        "audit synthetic images: do they lie nearer to training images than to others of their kind?",
        "dfshield.evaluation.privacy:run",
    ),
    "inspect": ("say what a training set, checkpoint, ledger or record holds", "dfshield.tools.inspect:run"),
    "verify": (
        "trace every cell of a table to ledger or record, student, data and teacher by hash",
        "dfshield.tools.verify:verify",
    ),
    "estimate": ("estimate jobs, time, GPU hours and disk before anything is run", "dfshield.tools.estimate:command"),
    "export-csv": ("write an evaluation ledger as CSV, one row per image", "dfshield.tools.export_csv:run"),
    "schema": ("print the JSON schema of config files", "dfshield.planning.schema:run"),
    "doctor": ("check this machine: versions, devices, data", "dfshield.tools.doctor:run"),
}
"""Commands that answer a question: what they do, and where their code is."""
TOOL_OPTIONS: dict[str, type[StageOptions]] = {"quality": QualityOptions, "privacy": PrivacyOptions}
"""Options of those among them that have a class of options, which have no section in a config."""
PROFILED = ("synthesize", "train")
"""Stages that the released code does otherwise than the paper's text."""
