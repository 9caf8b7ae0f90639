"""The plan: options by layers, paths, names of recipes."""

import pytest
from support.configs import GRID, MINE, ROOT, job, paper, plan

from dfshield.core.errors import InputError
from dfshield.planning.paths import DATA, DIVERSITY, LEDGER, SHARD, STUDENT, TEACHER, Place, recipe_name


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


# --- options ---------------------------------------------------------------------------------------------------------


def test_later_layers_win():
    """Profile, config, data set, model, recipe; each layer sets what the ones before it set too."""
    keys = ("weight_decay", "lr", "batch", "epochs", "tau")
    layers = {
        "profile": None,
        "train": {key: 0.2 if key == "lr" else 2 for key in keys[1:4]} | {"tau": 0.2},
        "datasets__digits__train": {"batch": 3, "epochs": 3, "tau": 0.3},
        "datasets__digits__by_model": {"cnn-s": {"train": {"epochs": 4, "tau": 0.4}}},
        "recipes": {"dfshield": {"train": "dfshield", "tau": 0.6}},
    }
    layers["profile"] = "repo"
    made = job(plan(**layers), "train", "digits", "cnn-s", recipe="dfshield", seed=7)
    assert (made.weight_decay, made.temperature, made.lr, made.batch, made.epochs) == (1e-4, 20, 0.2, 3, 4)
    assert (made.tau, made.seed, made.threat) == (0.6, 7, "linf:8/255")
    by_recipe = plan(**layers, datasets__digits__by_recipe={"dfshield": {"tau": 0.7}})
    assert job(by_recipe, "train", "digits", "cnn-s", recipe="dfshield").tau == 0.7


def test_another_model_or_recipe_does_not_see_them():
    made = plan(
        datasets__digits__models=["cnn-s", "cnn-m"],
        datasets__digits__by_model={"cnn-m": {"train": {"epochs": 4}}},
        datasets__digits__by_recipe={"std": {"tau": 0.1}},
    )
    assert job(made, "train", "digits", "cnn-s", recipe="dfshield").epochs == 100
    assert job(made, "train", "digits", "cnn-m", recipe="dfshield").epochs == 4
    assert job(made, "train", "digits", "cnn-m", recipe="dfshield").tau == 0.5
    assert job(made, "train", "digits", "cnn-m", recipe="std").tau == 0.1


def test_options_of_a_source_on_one_data_set():
    own = {"intraq": {"iterations": 3}, "qimera": {"epochs": 2, "images": 70}}
    made = plan(synthesize={"iterations": 9, "images": 600}, datasets__digits__by_source=own)
    own, other, without = (
        job(one, "synthesize", "digits", "cnn-s", source=source)
        for one, source in ((made, "intraq"), (made, "dss"), (plan(), "intraq"))
    )
    assert (own.iterations, other.iterations, without.iterations) == (3, 9, 1000)
    qimera, rdskd = (job(made, "generate", "digits", "cnn-s", source=source) for source in ("qimera", "rdskd"))
    assert (qimera.epochs, qimera.images, rdskd.epochs, rdskd.images) == (2, 70, 20, 600)


def test_options_of_sources_recipes_and_protocols():
    made = plan(synthesize={"iterations": 9}, attack={"chunk": 11}, split="dev", device="cpu")
    assert job(made, "synthesize", "digits", "cnn-s", source="fixed", seed=3).coefficients == "fixed"
    assert job(made, "synthesize", "digits", "cnn-s", source="dss", seed=3).model_dump().items() >= {
        "coefficients": "dss", "iterations": 9, "seed": 3, "device": "cpu",
    }.items()  # fmt: skip
    assert job(made, "train", "digits", "cnn-s", recipe="trades").loss == "trades"
    assert job(made, "train", "digits", "cnn-s", recipe="dfshield-plain").aggregate == 1
    attack = job(made, "attack", "digits", "cnn-s", protocol="pgd50x5")
    assert (attack.attack, attack.steps, attack.restarts, attack.split, attack.chunk) == ("pgd", 50, 5, "dev", 11)
    paper = {"autoattack": {"attack": "autoattack", "version": "paper"}}
    assert job(plan(protocols=paper), "attack", "digits", "cnn-s", protocol="autoattack").version == "paper"


def test_a_protocol_with_fewer_images_leaves_clean_accuracy_to_the_other():
    made = plan(datasets__digits__by_protocol={"autoattack": {"limit": 200}})
    limits = [job(made, "attack", "digits", "cnn-s", protocol=protocol).limit for protocol in ("autoattack", "pgd10")]
    assert limits == [200, 0]
    for table, protocol in (("table4", "pgd10"), ("table8", "autoattack"), ("table25", "autoattack")):
        clean = {cell.ledger for cell in made.cells(table) if cell.metric == "clean"}
        assert clean and all(f"/{protocol}@" in ledger for ledger in clean)


def test_options_of_a_users_model_win_over_its_sources():
    own = {"iterations": 7, "inversion": {"coefficients": "dss"}}
    made = plan(MINE, harden__net__synthesize=own, harden__net__source="fixed")
    options = job(made, "synthesize", "harden", "net", source="fixed")
    assert (options.iterations, options.coefficients) == (7, "dss")
    made = plan(MINE, harden__net__generate={"latent": 7}, sources={"gan": {"generate": "qimera", "latent": 8}})
    assert job(made, "generate", "harden", "net", source="gan").latent == 7


def test_a_limit_that_the_evaluation_does_not_state_is_the_attacks():
    assert job(plan(MINE, harden__net__attack={"limit": 9}), "attack", "harden", "net", protocol="pgd10").limit == 9
    both = plan(MINE, harden__net__attack={"limit": 9}, harden__net__evaluation={"file": "t.npz", "limit": 0})
    assert job(both, "attack", "harden", "net", protocol="pgd10").limit == 0


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (GRID, {"methods": ["ours", "dats"]}, "methods: no table has rows for all of ours, dats"),
        (GRID, {"synthesize": {"images": 2700, "batch": 64}}, r"synthesize options of digits/cnn-s: images \(2700\)"),
        (GRID, {"diversity": {"features": "vgg16"}}, "diversity options of digits/cnn-s: features vgg16 need"),
        (
            MINE,
            {"harden__net__recipe": "std", "recipes": {"std": {"train": "std", "awp": 1, "awp_warmup": 100}}},
            "leaves none of the",
        ),
        (
            MINE,
            {"harden__net__source": "q", "sources": {"q": {"synthesize": "intraq", "far": 0.01}}},
            "must not be above",
        ),
    ],
)
def test_what_is_wrong_whatever_the_target_is_found_before_any_job(base, changes, message):
    plan(base).check()
    with pytest.raises(InputError, match=message):
        plan(base, **changes).check()


def test_sources_and_recipes_that_nothing_asks_for_may_not_fit():
    plan(train={"inner": "kl"}, synthesize={"images": 600, "batch": 30}, datasets__digits__attack={"limit": 3}).check()


def test_options_that_do_not_fit_name_the_job():
    with pytest.raises(InputError, match=r"synthesize options of digits/cnn-s: images \(60000\) must be a multiple"):
        job(plan(synthesize={"batch": 7}), "synthesize", "digits", "cnn-s", source="dss")


def test_a_users_own_model():
    made = plan(
        MINE, harden__net__train={"epochs": 7, "tau": 0.9}, harden__net__evaluation={"file": "t.npz", "limit": 5}
    )
    assert (job(made, "train", "harden", "net", recipe="dfshield").epochs, made.datasets) == (7, ["harden"])
    assert job(made, "train", "harden", "net", recipe="dfshield").tau == 0.9
    assert job(made, "attack", "harden", "net", protocol="clean").limit == 5
    assert made.hardened("net").classes == 10
    with pytest.raises(InputError, match="harden: no entry 'other'; there are net"):
        made.hardened("other")


# --- paths -----------------------------------------------------------------------------------------------------------


def test_path_grammar():
    made = plan(name="r")
    place = made.place("digits", "cnn-s", source="dss", recipe="dfshield", seed=3)
    assert place.path(TEACHER) == "results/r/digits/cnn-s/seed-3/teacher.safetensors"
    assert place.at(shard=4).path(SHARD) == "results/r/digits/cnn-s/dss/seed-3/shard-4.h5"
    assert place.path(DATA) == "results/r/digits/cnn-s/dss/seed-3/data.h5"
    trained = "results/r/digits/cnn-s/dss/dfshield/linf-8-255/seed-3"
    assert place.path(STUDENT) == f"{trained}/student.safetensors"
    ledger = place.at(protocol="pgd10", threat="linf-10-255")
    assert ledger.path(LEDGER) == f"{trained}/eval/none/pgd10@linf-10-255/ledger.h5"
    assert Place.parse(LEDGER, ledger.path(LEDGER)) == ledger
    assert Place.parse(LEDGER, place.path(STUDENT)) is None
    assert place.at(split="train").path(DIVERSITY) == "results/r/digits/cnn-s/dss/seed-3/diversity@train.json"
    bare = made.place("digits", "cnn-s", protocol="clean", threat="linf-8-255").path(LEDGER)
    assert bare == "results/r/digits/cnn-s/none/none/none/seed-0/eval/none/clean@linf-8-255/ledger.h5"
    assert (
        plan(MINE, name="r").place("harden", "net").path(TEACHER) == "results/r/harden/net/seed-0/teacher.safetensors"
    )


@pytest.mark.parametrize(("shards", "images", "expected"), [(1, 1000, 1), (3, 1000, 3), (9, 1000, 5), (9, 200, 1)])
def test_no_more_shards_than_groups(shards, images, expected):
    made = plan(shards=shards, synthesize={"images": images})
    paths = made.shards(made.place("digits", "cnn-s", source="dss"))
    assert [path.rpartition("/")[2] for path in paths] == [f"shard-{i}.h5" for i in range(expected)]


def test_recipe_names():
    assert recipe_name("dfshield", {}) == "dfshield"
    assert recipe_name("dfshield", {"tau": 0.3}) == "dfshield.tau-0.3"
    assert recipe_name("dfshield", {"lambda1": 0.1, "lambda2": 10}) == "dfshield.lambda1-0.1.lambda2-10"
    assert recipe_name("dfshield", {"tau": 0.0}) == recipe_name("dfshield", {"tau": 0}) == "dfshield.tau-0"


def test_swept_recipes_have_their_options():
    made = paper()
    assert job(made, "train", "cifar10", "resnet20", recipe="dfshield.tau-0.3").tau == 0.3
    two = job(made, "train", "svhn", "resnet56", recipe="dfshield.lambda1-0.01.lambda2-100")
    assert (two.lambda1, two.lambda2, two.tau) == (0.01, 100, 0.5)
    assert set(made.recipes) >= {f"dfshield.aggregate-{b}" for b in (1, 2, 4, 8, 10, 20, 40)}


def test_options_of_other_sources():
    made = plan(augment={"cutmix": {"alpha": 0.4}}, datasets__digits__augment={"cutout": {"side": 0.25}})
    options = job(made, "augment", "digits", "cnn-s", source="cutmix", seed=3)
    assert (options.augmentation, options.alpha, options.seed) == ("cutmix", 0.4, 3)
    assert job(made, "augment", "digits", "cnn-s", source="cutout").side == 0.25
    generated = plan(synthesize={"images": 600}, generate={"width": 0.5, "epochs": 9})
    qimera, rdskd = (job(generated, "generate", "digits", "cnn-s", source=name, seed=2) for name in ("qimera", "rdskd"))
    assert (qimera.method, qimera.images, qimera.width, qimera.epochs, qimera.seed) == ("qimera", 600, 0.5, 9, 2)
    assert (rdskd.method, rdskd.epochs, rdskd.latent, rdskd.batch) == ("rdskd", 9, 1000, 512)
    own = job(made, "synthesize", "digits", "cnn-s", source="intraq")
    assert (own.objective, own.lr, own.iterations, own.group, own.labels) == ("intraq", 0.5, 1000, 20, "random")


def test_a_recipe_that_names_a_method_has_its_options():
    made = plan(
        cotrain={"batch": 40},
        train={"batch": 7, "epochs": 7},
        datasets__digits__by_recipe={"dfme": {"student_lr": 1e-4}},
    )
    found = job(made, "cotrain", "digits", "cnn-s", recipe="dfme", seed=3)
    assert (found.method, found.batch, found.seed, found.threat) == ("dfme", 40, 3, "linf:8/255")
    assert (found.student_lr, found.student_steps, found.epochs) == (1e-4, 5, 223)  # given; the method's own
    stages = {recipe: made.recipe_stage(recipe) for recipe in ("dast", "dfme", "ait", "dfard", "dfshield", "std")}
    assert list(stages.values()) == ["cotrain"] * 4 + ["train"] * 2
    svhn, cifar = (job(paper(), "cotrain", dataset, "resnet20", recipe="dfme") for dataset in ("svhn", "cifar10"))
    assert (svhn.epochs, svhn.generator_lr, cifar.epochs, cifar.generator_lr) == (22, 5e-5, 223, 1e-4)


def test_names_that_do_not_belong_together():
    made = plan()
    place = made.place("digits", "cnn-s", source="dss", recipe="dfshield")
    with pytest.raises(InputError, match="no threat model 'l2-1'"):
        made.options("train", place.at(train_threat="l2-1"))
    with pytest.raises(InputError, match="synthesize: 'qimera' is none of the config's sources of this stage"):
        made.options("synthesize", place.at(source="qimera"))
    with pytest.raises(InputError, match=r"datasets\.digits: no entry 'resnet20'; there are cnn-s"):
        made.options("train", place.at(model="resnet20"))
