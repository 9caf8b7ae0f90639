"""The stages of the program: one table that command line, workflow, config, code digests and estimates read.

A stage has one name: of its command, its rule, its section of a config. Nothing here imports PyTorch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dfshield import registry
from dfshield.core.validation import build
from dfshield.options import (
    AttackOptions,
    AugmentOptions,
    CertifyOptions,
    ChecksOptions,
    CotrainOptions,
    DefendOptions,
    DetectOptions,
    DiversityOptions,
    GenerateOptions,
    LandscapeOptions,
    PublicOptions,
    StageOptions,
    SynthesizeOptions,
    TeacherOptions,
    TrainOptions,
)
from dfshield.planning.paths import (
    CERTIFICATES,
    CHECKS,
    DATA,
    DEFENCE,
    DETECTION,
    DIVERSITY,
    LANDSCAPE,
    LEDGER,
    SHARD,
    STUDENT,
    TEACHER,
)

Registry = Mapping[str, registry.Entry]


@dataclass(frozen=True)
class Stage:
    """One stage: its code, its options, its file, and what a job of it asks of the machine."""

    about: str
    """What it does, in one line."""
    run: str
    """What its command runs: ``package.module:function``."""
    options: type[StageOptions] | None = None
    """Options of all its entries; an entry may have a subclass of its own."""
    output: str = ""
    """Template of the file that a job makes."""
    entries: tuple[tuple[str, Registry], ...] = ()
    """Options that name registry entries whose code the job runs, besides ``options.entries``."""
    dataset: bool = False
    """The job runs the loader of the data set."""
    code: tuple[str, ...] = ()
    """Where the code that decides about the result starts; without it `run`."""
    section: bool = True
    """Its options have a section in a config; without it an entry under a vocabulary says them all."""
    gpu: bool = True
    """Its hours are a GPU's, where there is one."""
    memory_mb: int = 2000
    """Memory to ask a cluster for: PyTorch with CUDA takes 2 to 3 GB, 60,000 CIFAR images 740 MB."""
    minutes: int = 60
    """Time to ask a cluster for, by the paper's largest model on one GPU; a day is the longest that many grant."""
    resumes: bool = False
    """A job that ran out of time goes on in as much again; others start over, each time with more."""

    def chosen(self, options: StageOptions | None) -> list[registry.Entry]:
        """The registry entries that options name, as far as they are registered."""
        if options is None:
            return []
        pairs = [*([options.entries] if options.entries else []), *self.entries]
        found = [known.get(str(getattr(options, field, ""))) for field, known in pairs]
        return [entry for entry in found if entry is not None]


STAGES: dict[str, Stage] = {
    "teacher": Stage(
        "train a teacher on real data, or import a trained one",
        "dfshield.training.teacher:run",
        TeacherOptions,
        TEACHER,
        dataset=True,
        memory_mb=4000,
        minutes=1440,
        resumes=True,
    ),
    "synthesize": Stage(
        "make one shard of a synthetic training set out of a teacher",
        "dfshield.sources.inversion:run",
        SynthesizeOptions,
        SHARD,
        entries=(("coefficients", registry.COEFFICIENTS),),
        memory_mb=4000,
        minutes=480,
        resumes=True,
    ),
    "merge": Stage("merge the shards of one training set", "dfshield.sources.trainset:merge", output=DATA, gpu=False),
    "generate": Stage(
        "make a synthetic training set by a generator that a teacher trains",
        "dfshield.sources.generator:run",
        GenerateOptions,
        DATA,
        memory_mb=4000,
        minutes=480,
        resumes=True,
    ),
    "augment": Stage(
        "derive a training set from another by Mixup, Cutout or CutMix",
        "dfshield.sources.augmentation:run",
        AugmentOptions,
        DATA,
        gpu=False,
        memory_mb=8000,
    ),
    "export": Stage(
        "write a real training set in the format of synthetic ones, for the upper bound (not data-free)",
        "dfshield.sources.real:export",
        output=DATA,
        dataset=True,
        gpu=False,
        memory_mb=4000,
    ),
    "public": Stage(
        "write another real data set's images with the teacher's labels as a training set (not data-free)",
        "dfshield.sources.public:run",
        PublicOptions,
        DATA,
        entries=(("dataset", registry.DATASETS),),
        memory_mb=8000,
    ),
    "train": Stage(
        "adversarially fine-tune a copy of the teacher on a training set",
        "dfshield.training.train:run",
        TrainOptions,
        STUDENT,
        memory_mb=8000,
        minutes=1440,
        resumes=True,
    ),
    "cotrain": Stage(
        "train a generator and a student together, without a training set (DaST, DFME, AIT, DFARD)",
        "dfshield.baselines.cotrain:run",
        CotrainOptions,
        STUDENT,
        memory_mb=8000,
        minutes=1440,
        resumes=True,
    ),
    "defend": Stage(
        "fit a defence at test time to a model on a training set",
        "dfshield.defences.fit:run",
        DefendOptions,
        DEFENCE,
        section=False,
        memory_mb=8000,
        minutes=480,
    ),
    "attack": Stage(
        "attack a model on real images and write the evaluation ledger",
        "dfshield.evaluation.attack:run",
        AttackOptions,
        LEDGER,
        dataset=True,
        memory_mb=6000,
        minutes=1440,
        resumes=True,
    ),
    "certify": Stage(
        "certify radii within which noise leaves the answer of a smoothed classifier as it is",
        "dfshield.evaluation.certify:run",
        CertifyOptions,
        CERTIFICATES,
        dataset=True,
        memory_mb=4000,
        minutes=480,
    ),
    "detect": Stage(
        "fit a detector of attacked images and evaluate it before attacks that know of it",
        "dfshield.evaluation.detection:run",
        DetectOptions,
        DETECTION,
        dataset=True,
        memory_mb=6000,
        minutes=480,
    ),
    "checks": Stage(
        "check whether the evaluation of a model can be believed",
        "dfshield.evaluation.check:run",
        ChecksOptions,
        CHECKS,
        dataset=True,
        code=("dfshield.evaluation.check:run", *(entry.target for entry in registry.CHECKS.values())),
        memory_mb=6000,
        minutes=240,
    ),
    "diversity": Stage(
        "compare a training set with real images: precision, recall, density, coverage, NDB, JSD",
        "dfshield.evaluation.diversity:run",
        DiversityOptions,
        DIVERSITY,
        dataset=True,
        memory_mb=12000,
        minutes=240,
    ),
    "landscape": Stage(
        "measure the loss of a model around its weights along random directions, and how sharply it rises",
        "dfshield.evaluation.landscape:run",
        LandscapeOptions,
        LANDSCAPE,
        dataset=True,
        memory_mb=6000,
        minutes=480,
    ),
    "table": Stage(
        "render one table from its ledgers and records, as CSV, Markdown, LaTeX and HTML",
        "dfshield.report.table:run",
        code=("dfshield.report.table:build", "dfshield.report.table:texts", "dfshield.report.table:RENDERERS"),
        gpu=False,
        minutes=30,
    ),
    "figure": Stage(
        "draw one figure from the ledgers and records of its table, as PNG, SVG and CSV",
        "dfshield.report.figure:run",
        code=("dfshield.report.figure:LAYOUTS",),
        gpu=False,
        minutes=30,
    ),
    "cost": Stage(
        "say what every method of table 4 takes: seconds as measured by Snakemake, arithmetic as counted",
        "dfshield.report.cost:run",
        gpu=False,
        minutes=30,
    ),
    "checklist": Stage(
        "list the robustness checks of every model, as CSV and Markdown",
        "dfshield.report.checklist:run",
        gpu=False,
        minutes=30,
    ),
    "card": Stage(
        "write a hardened model with its report and model card", "dfshield.report.model_card:run", gpu=False, minutes=30
    ),
    "report": Stage(
        "put the tables, figures, model cards and checks of a run on one page of HTML",
        "dfshield.report.report_page:run",
        gpu=False,
        minutes=30,
    ),
}
"""All stages in the order of the flow."""

OLD_NAMES = {
    "synthesis": "synthesize",
    "generation": "generate",
    "augmentation": "augment",
    "training": "train",
    "cotraining": "cotrain",
}
"""Sections of a config that had other names than their stages, and what they are called now."""


def sections() -> dict[str, type[StageOptions]]:
    """The stages that have a section of options in a config."""
    return {name: stage.options for name, stage in STAGES.items() if stage.options is not None and stage.section}


def options_of(stage: str, values: dict[str, Any], where: str) -> Any:
    """The options of a job from plain values, of the class of the entry that they name; raises InputError."""
    base = STAGES[stage].options
    assert base is not None, stage
    name = values.get(base.entries[0]) if base.entries else None
    return build(base.class_for(name), values, where)
