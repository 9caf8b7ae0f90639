"""Options of stages and entries: what is accepted, what is refused and how."""

import pytest

from dfshield import registry
from dfshield.core.errors import InputError
from dfshield.core.threat import parse_threat, threat_name
from dfshield.core.validation import build
from dfshield.options import (
    PROFILES,
    AttackOptions,
    AugmentOptions,
    CotrainOptions,
    DiversityOptions,
    GenerateOptions,
    SynthesizeOptions,
    TrainOptions,
)
from dfshield.planning.choices import OPTIONS, check_section, layer
from dfshield.planning.config import DatasetConfig


@pytest.mark.parametrize(
    ("text", "norm", "eps"),
    [("linf:8/255", "linf", 8 / 255), ("l2:0.5", "l2", 0.5), ("l2:128/255", "l2", 128 / 255), ("linf:0", "linf", 0),
     ("linf:1", "linf", 1), ("linf: 8 / 255", "linf", 8 / 255)],
)  # fmt: skip
def test_threats(text, norm, eps):
    assert parse_threat(text) == (norm, eps)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8/255", "is not NORM:EPS"),
        ("linf", "is not NORM:EPS"),
        ("l3:1", "is not NORM:EPS with NORM one of linf, l2"),
        ("linf:8", "between 0 and 1; for 8 pixel units write linf:8/255"),
        ("l2:128", "between 0 and 16; for 128 pixel units write l2:128/255"),
        ("linf:-1/255", "between 0 and 1"),
        ("linf:nan", "not a number or fraction such as 8/255"),
        ("linf:inf", "not a number or fraction"),
        ("linf:8/0", "not a number or fraction"),
        ("linf:eight", "not a number or fraction"),
        ("linf:", "not a number or fraction"),
    ],
)
def test_wrong_threats(text, message):
    with pytest.raises(ValueError, match=message):
        parse_threat(text)
    with pytest.raises(InputError, match="threat: ") as error:
        build(TrainOptions, {"threat": text}, "here")
    assert message in str(error.value)
    assert str(error.value).count("\n") == 0


def test_nothing_is_trained_in_l1():
    assert parse_threat("l1:2") == ("l1", 2)
    assert AttackOptions.of(attack="pgd", threat="l1:2").threat == "l1:2"
    with pytest.raises(InputError, match="attack autoattack works within linf, l2, but threat is l1:2"):
        AttackOptions.of(threat="l1:2").check_needs()
    with pytest.raises(InputError, match="NORM one of linf, l2; write for example linf:8/255"):
        build(TrainOptions, {"threat": "l1:2"}, "here")


def test_names_of_threats_are_file_names():
    names = [threat_name(text) for text in ("linf:8/255", "linf:4/255", "l2:0.5", "l2:128/255")]
    assert names == ["linf-8-255", "linf-4-255", "l2-0.5", "l2-128-255"]
    assert TrainOptions.of(threat="linf: 8 /255").threat == "linf:8/255"


@pytest.mark.parametrize(
    ("options", "values", "key"),
    [
        (TrainOptions, {"tau": 1.1}, "tau"),
        (TrainOptions, {"tau": -0.1}, "tau"),
        (TrainOptions, {"lr": 0}, "lr"),
        (TrainOptions, {"lr": float("nan")}, "lr"),
        (TrainOptions, {"lambda1": float("inf")}, "lambda1"),
        (TrainOptions, {"epochs": 0}, "epochs"),
        (TrainOptions, {"epochs": 1.5}, "epochs"),
        (TrainOptions, {"epochs": "many"}, "epochs"),
        (TrainOptions, {"seed": -1}, "seed"),
        (TrainOptions, {"loss": "hinge"}, "loss"),
        (TrainOptions, {"inner": "dlr"}, "inner"),
        (TrainOptions, {"loss": "rslad", "alpha": "6/5"}, r"alpha.*must lie in \(0, 1\]"),
        (TrainOptions, {"loss": "ard", "alpha": 1.5}, "alpha"),
        (TrainOptions, {"loss": "ard", "temperature": 0}, "temperature"),
        (TrainOptions, {"loss": "alp", "pairs": "features"}, "pairs"),
        (TrainOptions, {"loss": "dart", "fosc_max": 0}, "fosc_max"),
        (TrainOptions, {"average": 1}, "average"),
        (TrainOptions, {"awp": -0.01}, "awp"),
        (TrainOptions, {"awp": 2}, "awp"),
        (TrainOptions, {"eps_warmup": 1.1}, "eps_warmup"),
        (TrainOptions, {"lr_warmup": -0.1}, "lr_warmup"),
        (TrainOptions, {"eps_factor": 0}, "eps_factor"),
        (TrainOptions, {"contrast": 1.1}, "contrast"),
        (TrainOptions, {"noise": -0.1}, "noise"),
        (TrainOptions, {"batchnorm": "frozen"}, "batchnorm"),
        (
            TrainOptions,
            {"awp": 0.01, "awp_warmup": 5, "epochs": 5},
            r"awp_warmup \(5\) leaves none of the 5 epochs for awp; use awp_warmup <= 4 or awp 0",
        ),
        (TrainOptions, {"loss": "vat"}, "loss vat searches an l2 ball, threat is linf:8/255; give l2:EPS"),
        (TrainOptions, {"loss": "vat", "threat": "l2:1", "inner": "ce"}, "inner ce: loss vat has no .*; use auto"),
        (TrainOptions, {"loss": "gradient-penalty", "inner": "kl"}, "inner kl: loss gradient-penalty has no inner"),
        (TrainOptions, {"loss": "fgsm", "inner": "kl"}, "inner kl: loss fgsm starts at the image.*; use auto or ce"),
        (TrainOptions, {"loss": "fgsm", "inner": "teacher"}, "inner teacher: loss fgsm starts at the image"),
        (TrainOptions, {"l2_step": "2"}, "l2_step"),
        (TrainOptions, {"l2_step": "0"}, "l2_step"),
        (TrainOptions, {"l2_step": "eps/4"}, "l2_step"),
        (TrainOptions, {"nesterov": True, "momentum": 0}, "nesterov"),
        (TrainOptions, {"aggregat": 3}, "did you mean 'aggregate'"),
        (TrainOptions, {"zzz": 3}, "allowed: device, threads, seed"),
        (SynthesizeOptions, {"images": 1000, "batch": 300}, r"images \(1000\) must be a multiple of batch \(300\)"),
        (SynthesizeOptions, {"images": 100}, "the nearest is 200"),
        (SynthesizeOptions, {"coefficients": "dice"}, "coefficients"),
        (SynthesizeOptions, {"roll": -1}, "roll"),
        (SynthesizeOptions, {"objective": "gan"}, "objective"),
        (SynthesizeOptions, {"objective": "intraq", "near": 0.9}, r"near \(0.9\) must not be above far \(0.8\)"),
        (AugmentOptions, {"augmentation": "rotate"}, "augmentation"),
        (AugmentOptions, {"probability": 1.1}, "probability"),
        (DiversityOptions, {"features": "vgg16"}, "features vgg16 need its weights, which are never downloaded"),
        (DiversityOptions, {"bin_features": "inception"}, "bin_features"),
        (AttackOptions, {"attack": "bim"}, "attack"),
        (CotrainOptions, {"method": "gan"}, "method"),
        (CotrainOptions, {"method": ["dast"]}, "method"),
        (CotrainOptions, {"batch": 1}, "batch"),
        (CotrainOptions, {"adam_beta1": 1}, "adam_beta1"),
        (CotrainOptions, {"milestones": [2]}, "milestones"),
        (CotrainOptions, {"method": "ait", "epochs": 4}, r"generator_epochs \(4\) must be less than epochs \(4\)"),
        (CotrainOptions, {"method": "ait", "momentum": 0}, "nesterov needs a momentum"),
        (CotrainOptions, {"lambda1": 1}, "lambda1: unknown key"),
        (AttackOptions, {"limit": -1}, "limit"),
    ],
)
def test_wrong_options(options, values, key):
    name = values.get(options.entries[0]) if options.entries else None
    with pytest.raises(InputError, match=key) as error:
        build(options.class_for(name if isinstance(name, str) else None), values, "file.yaml")
    assert str(error.value).startswith("file.yaml: ")
    assert "\n" not in str(error.value)


def classes(stage):
    """The option classes of a stage's entries, its own first."""
    own = OPTIONS[stage]
    return [] if own is None else [own, *(own.class_for(name) for name in (own.entries[1] if own.entries else ()))]


@pytest.mark.parametrize(
    "options", dict.fromkeys(c for stage in OPTIONS for c in classes(stage)), ids=lambda c: c.__name__
)
def test_every_option_says_what_it_is(options):
    assert options.__doc__
    texts = options.help_texts()
    for name, field in options.model_fields.items():
        assert texts[name], name
        assert not field.is_required(), name
        assert "\n" not in texts[name]


@pytest.mark.parametrize("stage", OPTIONS)
def test_an_entry_is_no_option(stage):
    """A section holds options and, by their names, parts for single entries: no name may be both."""
    for options in classes(stage):
        assert options.entries is None or not set(options.model_fields) & set(options.entries[1])


@pytest.mark.parametrize("stage", OPTIONS)
def test_an_entry_has_the_class_that_it_names(stage):
    own = OPTIONS[stage]
    threat = {"threat": "l2:1"} if own and "threat" in own.model_fields else {}  # VAT searches no other ball
    for name in own.entries[1] if own and own.entries else ():
        made = own.of(**{own.entries[0]: name}, **threat)
        assert getattr(made, own.entries[0]) == name and isinstance(made, own)


def test_vocabularies_are_the_registries():
    fields = {
        ("loss", TrainOptions): registry.LOSSES,
        ("method", CotrainOptions): registry.BASELINES,
        ("coefficients", SynthesizeOptions.class_for("inversion")): registry.COEFFICIENTS,
        ("objective", SynthesizeOptions): registry.OBJECTIVES,
        ("augmentation", AugmentOptions): registry.AUGMENTATIONS,
        ("method", GenerateOptions): registry.GENERATED,
        ("attack", AttackOptions): registry.ATTACKS,
    }
    for (name, options), table in fields.items():
        assert list(options.model_fields[name].annotation.__args__) == list(table)
    models = DatasetConfig.model_fields["models"].annotation.__args__[0]
    assert list(models.__args__) == list(registry.MODELS)


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_hold_options_that_there_are(profile):
    for stage, values in PROFILES[profile].items():
        check_section(values, stage, stage)
    assert layer(PROFILES["repo"]["train"], "train", "dfshield")["temperature"] == 20.0
    assert "temperature" not in layer(PROFILES["repo"]["train"], "train", "ard")


def test_options_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        TrainOptions.of().lr = 1.0


@pytest.mark.parametrize(
    ("images", "batch", "group", "groups"), [(60_000, 200, 1, 300), (100, 10, 4, 3), (40, 10, 4, 1)]
)
def test_number_of_groups(images, batch, group, groups):
    assert SynthesizeOptions(images=images, batch=batch, group=group).groups == groups
