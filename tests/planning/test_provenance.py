"""Code digests: an edit reruns what depends on it and nothing else."""

import ast
import dataclasses
import shutil
from pathlib import Path

import pytest

from dfshield import registry
from dfshield.planning import provenance
from dfshield.planning.stages import Stage
from dfshield.registry import (
    ATTACKS,
    AUGMENTATIONS,
    BASELINES,
    COEFFICIENTS,
    DATASETS,
    DEFENCES,
    DETECTORS,
    GENERATED,
    LOSSES,
    MODELS,
    OBJECTIVES,
    Loss,
)

pytestmark = pytest.mark.slow

CHOSEN = {
    "teacher": (MODELS["cnn-s"],),
    "synthesize": (MODELS["cnn-s"], COEFFICIENTS["dss"], OBJECTIVES["inversion"]),
    "generate": (MODELS["cnn-s"], GENERATED["qimera"]),
    "augment": (AUGMENTATIONS["mixup"],),
    "diversity": (MODELS["cnn-s"],),
    "train": (MODELS["cnn-s"], LOSSES["dfshield"]),
    "cotrain": (MODELS["cnn-s"], BASELINES["dast"]),
    "defend": (MODELS["cnn-s"], DEFENCES["mixture"]),
    "attack": (MODELS["cnn-s"], ATTACKS["pgd"]),
    "certify": (MODELS["cnn-s"],),
    "detect": (MODELS["cnn-s"], DETECTORS["lid"]),
    "checks": (MODELS["cnn-s"],),
    "landscape": (MODELS["cnn-s"],),
    "public": (MODELS["cnn-s"], DATASETS["photographs"]),
    "export": (),
    "merge": (),
    "table": (),
    "checklist": (),
    "card": (),
}
READS_SHARDS = {
    *("cotrain", "synthesize", "generate", "augment", "diversity", "train", "public", "export", "merge", "defend"),
    "detect",
}
ATTACKED = {"attack", "checks", "defend", "detect", "landscape"}
TRAINS = {"train", "cotrain"}
USES_MODELS = ATTACKED | {"certify", "teacher", "synthesize", "generate", "diversity", "train", "cotrain", "public"}
TABLES = (
    "COEFFICIENTS",
    "OBJECTIVES",
    "GENERATED",
    "AUGMENTATIONS",
    "SOURCES",
    "LOSSES",
    "BASELINES",
    "ATTACKS",
    "DATASETS",
    "MODELS",
)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package that `provenance` reads in place of the real one."""
    copy = tmp_path / "dfshield"
    shutil.copytree(provenance.ROOT, copy, ignore=shutil.ignore_patterns("__pycache__", "*.csv"))
    monkeypatch.setattr(provenance, "ROOT", copy)
    _forget()
    yield copy
    _forget()


def _forget():
    for function in vars(provenance).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def _digests():
    _forget()
    return {stage: provenance.stage_digest(stage, *chosen) for stage, chosen in CHOSEN.items()}


def _edit(file: Path, old: str, new: str):
    text = file.read_text()
    assert text.count(old) == 1, (file, old, text.count(old))
    file.write_text(text.replace(old, new))


def _alter(file: Path, name: str):
    """Put a statement into the function or method `name`, or change the constant `name`."""
    lines = file.read_text().split("\n")
    nodes = [node for node in ast.walk(ast.parse("\n".join(lines))) if getattr(node, "name", None) == name]
    if nodes:
        last = nodes[0].body[-1]
        lines.insert(last.lineno - 1, " " * last.col_offset + "altered = 1")
    else:
        index = next(i for i, line in enumerate(lines) if line.startswith(f"{name} = "))
        lines[index] = lines[index].replace(" = ", " = 2 * ", 1)
    file.write_text("\n".join(lines))


EDITS = {
    "the loss": ("training/losses.py", "dfshield", {"train"}),
    "what the loss calls": ("training/losses.py", "kl", TRAINS),
    "another loss": ("training/losses.py", "trades", set()),
    "the inner maximisation": ("training/inner.py", "pgd_ascent", TRAINS),
    "a method of co-training": ("baselines/dast.py", "Dast", {"cotrain"}),
    "its loss": ("baselines/dast.py", "dast_imitation", {"cotrain"}),
    "its generator": ("models/generators.py", "DastGenerator", {"cotrain"}),
    "another method of co-training": ("baselines/dfard.py", "Dfard", set()),
    "another method's loss": ("baselines/dfard.py", "dfard_student", set()),
    "another generator": ("models/generators.py", "DfmeGenerator", set()),
    "the trunk of some generators": ("models/generators.py", "UpsamplingTrunk", {"generate"}),
    "the loop of co-training": ("baselines/cotrain.py", "_student_loss", {"cotrain"}),
    "a method": ("training/gradrefine.py", "refine", {"train"}),
    "threat geometry": ("core/lp.py", "step", TRAINS | ATTACKED),
    "a constant": ("core/lp.py", "NORMAL_START", TRAINS | ATTACKED),
    "an objective term": ("sources/objective.py", "feature_loss", {"synthesize", "generate"}),
    "the chosen sampler": ("sources/coefficients.py", "dss", {"synthesize"}),
    "another sampler": ("sources/coefficients.py", "fixed", set()),
    "IntraQ's objective": ("sources/intraq.py", "margin_loss", set()),
    "the generator's network": ("models/generators.py", "doublings", {"generate", "cotrain"}),
    "another generated source": ("sources/rdskd.py", "similarity_loss", set()),
    "the chosen augmentation": ("sources/augmentation.py", "mixup", {"augment"}),
    "another augmentation": ("sources/augmentation.py", "cutout", set()),
    "a diversity metric": ("evaluation/coverage.py", "jensen_shannon", {"diversity"}),
    "the record of diversity": ("evaluation/record.py", "protocol", {"table", "card"}),
    "the chosen model": ("models/cnn.py", "cnn_s", USES_MODELS),
    "another model": ("models/cnn.py", "cnn_m", set()),
    "the shard contract": ("sources/trainset.py", "_content_hash", READS_SHARDS),
    "the merge": ("sources/trainset.py", "merge", {"merge"}),
    "a re-exported function": ("models/factory.py", "build_network", USES_MODELS | {"card"}),
    "an import in a function": ("data/sets.py", "load_npz", {"attack", "checks", "certify", "detect", "landscape"}),
    "the writing of ledgers": ("evaluation/ledger.py", "write_ledger", {"attack"}),
    "the fitted defence": ("defences/mixture.py", "choose", {"defend"}),
    "the writing of a fit": ("defences/fit_file.py", "write_fit", {"defend"}),
    "the reading of a fit": ("defences/fit_file.py", "fit_for", {"attack", "certify", "checks"}),
    "the noise of certificates": ("defences/smoothing.py", "noisy", {"certify"}),
    "the chosen detector": ("defences/lid.py", "dimensionality", {"detect"}),
    "another detector": ("defences/feature_squeezing.py", "FeatureSqueezing", set()),
    "a strategy of evasion": ("evaluation/evasion.py", "orthogonal", {"detect"}),
    "another defence": ("defences/tte.py", "TestTimeEnsemble", set()),
    "seeding": ("core/rng.py", "generator", USES_MODELS | {"augment", "card"}),
    "progress bars": ("core/progress.py", "progress", set()),
    "an option class": ("options/sources.py", "_whole_batches", set()),
    "the command line": ("cli.py", "parser", set()),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_changes_the_stages_that_use_it(package, name):
    file, function, expected = EDITS[name]
    before = _digests()
    _alter(package / file, function)
    after = _digests()
    assert {stage for stage in before if before[stage] != after[stage]} == expected


def test_a_definition_is_read_once_for_all_digests(monkeypatch):
    """A grid asks for a hundred digests, and they have most of the code in common."""
    _forget()
    read = []
    dump = ast.dump
    monkeypatch.setattr(ast, "dump", lambda node: read.append(node) or dump(node))
    for model in MODELS.values():
        for loss in LOSSES.values():
            provenance.stage_digest("train", model, loss)
    assert len(read) == len(set(read)) and len(read) > 50
    _forget()


def test_a_new_version_number_changes_nothing(package):
    before = _digests()
    _edit(package / "__init__.py", '__version__ = "', '__version__ = "9')
    assert _digests() == before


def test_docstrings_comments_and_layout_change_nothing(package):
    before = _digests()
    for file in package.rglob("*.py"):
        text = file.read_text().replace('"""', '"""Said otherwise. ', 1).replace("\n\n\n", "\n\n\n\n# a comment\n\n")
        file.write_text(text.replace(" -> Tensor:\n", " -> Tensor:  # a tensor\n"))
    _edit(package / "training/losses.py", '"""Standard adversarial training', '"""Plain adversarial training')
    assert _digests() == before


def test_a_new_loss_reruns_nothing_and_has_a_digest_of_its_own(package):
    before = _digests()
    losses = package / "training/losses.py"
    losses.write_text(losses.read_text() + "\n\ndef mine(out, options):\n    return 1\n")
    entry = '    "mine": Loss("dfshield.training.losses:mine"),\n    "std": Loss('
    _edit(package / "registry/losses.py", '    "std": Loss(', entry)
    assert _digests() == before
    own = provenance.stage_digest("train", MODELS["cnn-s"], Loss("dfshield.training.losses:mine"))
    assert own != before["train"]


def test_the_chosen_entries_are_part_of_the_digest():
    digests = {provenance.stage_digest("train", MODELS[m], loss) for m in MODELS for loss in LOSSES.values()}
    assert len(digests) == len(MODELS) * len(LOSSES)


def test_facts_of_the_chosen_entries_count_and_titles_do_not():
    target = LOSSES["std"].target
    facts = [{}, {"inner": "ce"}, {"start": "uniform"}, {"inner": "ce", "start": "uniform"}, {"labels": "teacher"}]
    assert len({provenance.stage_digest("train", Loss(target, **given)) for given in facts}) == len(facts)
    default = provenance.stage_digest("train", registry.Entry(target))  # a new fact reruns only what states it
    assert provenance.stage_digest("train", Loss(target)) == default
    digits = registry.DATASETS["digits"]
    renamed, larger = dataclasses.replace(digits, title="Numbers"), dataclasses.replace(digits, classes=11)
    digests = [provenance.stage_digest("attack", entry) for entry in (digits, renamed, larger)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    "text",
    [
        "from dfshield.sources.trainset import CHUNK_BYTES\ndef start():\n    return CHUNK_BYTES\n",
        "from dfshield.sources.trainset import CHUNK_BYTES as c\nstart = lambda: c\n",
        "from dfshield.sources import trainset as s\ndef start():\n    return s.CHUNK_BYTES\n",
        "import dfshield.sources.trainset\ndef start():\n    return dfshield.sources.trainset.CHUNK_BYTES\n",
        "import dfshield.sources.trainset as s\nclass start:\n    def method(self):\n        return s.CHUNK_BYTES\n",
        "def start():\n    from dfshield.sources.trainset import CHUNK_BYTES\n    return CHUNK_BYTES\n",
        "def start():\n    import dfshield.sources.trainset\n    return dfshield.sources.trainset.CHUNK_BYTES\n",
        "from .sources.trainset import CHUNK_BYTES\ndef start():\n    return CHUNK_BYTES\n",
        "from .sources import trainset\ndef start():\n    return trainset.CHUNK_BYTES\n",
        "try:\n    from dfshield.sources.trainset import CHUNK_BYTES as c\n"
        "except ImportError:\n    pass\nstart, other = c, 1\n",
        "def a():\n    from dfshield.planning.paths import DATA as c\n    return c\n"
        "def start():\n    from dfshield.sources.trainset import CHUNK_BYTES as c\n    return c\n"
        "def b():\n    from dfshield.planning.paths import DATA as c\n    return c\n",
        "if True:\n    def start():\n        return helper()\n    def helper():\n"
        "        from dfshield.sources.trainset import CHUNK_BYTES\n        return CHUNK_BYTES\n",
    ],
)
def test_every_way_to_reach_other_code_is_followed(package, monkeypatch, text):
    (package / "new.py").write_text(text)
    (package / "again.py").write_text("from dfshield.new import start as begin\n")
    monkeypatch.setitem(provenance.STAGES, "new", Stage("a new one", "dfshield.again:begin"))
    before = provenance.stage_digest("new")
    _edit(package / "sources/trainset.py", "CHUNK_BYTES = 2**20", "CHUNK_BYTES = 2**21")
    _forget()
    assert provenance.stage_digest("new") != before


@pytest.mark.parametrize("target", ["dfshield.training.losses:mistyped", "dfshield.nowhere:run", "elsewhere:run"])
def test_an_entry_without_code_is_an_error(target):
    with pytest.raises(LookupError, match=target):
        provenance.stage_digest("train", Loss(target))


@pytest.mark.parametrize(
    "entry",
    [entry for table in TABLES for entry in getattr(registry, table).values()],
    ids=lambda entry: entry.target,
)
def test_every_registered_target_can_be_read_and_loaded(entry):
    assert provenance.stage_digest("merge", entry) != provenance.stage_digest("merge")
    assert callable(entry.load())
