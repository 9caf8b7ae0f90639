"""Configs: what is accepted, what is refused and how."""

from pathlib import Path

import pytest
import yaml
from support.configs import GRID, MINE, ROOT, changed

from dfshield.core.errors import InputError
from dfshield.core.files import read_yaml
from dfshield.core.validation import Options
from dfshield.planning.config import Config, check_config, load_config, load_configs
from dfshield.planning.plan import Plan
from dfshield.planning.stages import sections


@pytest.mark.parametrize(
    ("base", "path", "value", "message"),
    [
        (GRID, "name", "a/b", "name: "),
        (GRID, "name", "../up", "name: "),
        (GRID, "seedz", [1], "seedz: unknown key; did you mean 'seeds'"),
        (GRID, "seeds", [], "seeds: "),
        (GRID, "seeds", [-1], r"seeds\.0: "),
        (GRID, "profile", "mine", "profile: "),
        (GRID, "datasets/cifar11", {"models": ["cnn-s"], "threat": "linf:1/255"}, "datasets.cifar11"),
        (GRID, "datasets/digits/models", ["cnn-x"], r"datasets\.digits\.models\.0: "),
        (GRID, "datasets/digits/models", [], r"datasets\.digits\.models: "),
        (GRID, "datasets/digits/threat", "linf:8", r"datasets\.digits\.threat: .*linf:8/255"),
        (GRID, "datasets/digits/train", {"learning_rate": 1}, r"train: unknown option 'learning_rate'"),
        (GRID, "datasets/digits/train", {"lr": float("nan")}, r"train\.lr: "),
        (GRID, "datasets/digits/by_model", {"cnn-m": {}}, r"by_model: 'cnn-m' is not one of cnn-s"),
        (GRID, "datasets/digits/by_source", {"mine": {}}, r"by_source: 'mine' is not one of class-high, class-lo"),
        (GRID, "datasets/digits/by_source", {"real": {}}, r"by_source\.real: export has no options; take it out"),
        (GRID, "datasets/digits/by_source", {"qimera": {"roll": 1}}, r"by_source\.qimera: unknown option 'roll'"),
        (GRID, "datasets/digits/by_recipe", {"mine": {}}, r"by_recipe: 'mine' is not one of ait, alp, ard"),
        (GRID, "datasets/digits/by_recipe", {"std": {"taus": 1}}, "did you mean 'tau'"),
        (GRID, "datasets/digits/by_recipe", {"std": {"lambda1": 1}}, r"by_recipe\.std: unknown option 'lambda1'"),
        (
            GRID,
            "datasets/digits/by_protocol",
            {"pgd": {}},
            r"by_protocol: 'pgd' is not one of a3, aa-rand, .*autoattack, .*clean",
        ),
        (GRID, "datasets/digits/by_protocol", {"pgd10": {"limt": 1}}, "did you mean 'limit'"),
        (GRID, "train", {"threat": "linf:1/255"}, r"train\.threat: cannot be set here; use threat: of the data"),
        (GRID, "attack", {"steps": 50}, r"attack\.steps: is an option of pgd.* alone; write attack: {pgd: {steps: …}}"),
        (GRID, "datasets/digits/attack", {"split": "dev"}, r"attack\.split: cannot be set here; use split:"),
        (GRID, "synthesize", {"seed": 3}, r"synthesize\.seed: cannot be set here; use seeds:"),
        (GRID, "teacher", {"seed": 3}, r"teacher\.seed: cannot be set here; use seeds:"),
        (GRID, "datasets/digits/teacher", {"seed": 3}, r"teacher\.seed: cannot be set here; use seeds:"),
        (GRID, "diversity", {"seed": 3}, r"diversity\.seed: cannot be set here; use seeds:"),
        (GRID, "recipes", {"mine": {"train": "std", "threat": "l2:1"}}, r"recipes\.mine\.threat: cannot be set here"),
        (GRID, "datasets/digits/by_recipe", {"std": {"seed": 1}}, r"by_recipe\.std\.seed: cannot be set here"),
        (GRID, "sources/dss", {"synthesize": "inversion", "seed": 1}, r"sources\.dss\.seed: cannot be set here"),
        (MINE, "harden/net/train", {"threat": "l2:1"}, r"train\.threat: cannot be set here"),
        (GRID, "train", {"tau": 2}, r"train\.tau: .*less than or equal to 1"),
        (GRID, "train", {"dfshield": {"tua": 2}}, r"train\.dfshield: unknown option 'tua'; did you mean 'tau'"),
        (GRID, "train", {"dfshield": 2}, r"train\.dfshield: must be a mapping of the options of dfshield"),
        (
            GRID,
            "train",
            {"temperature": 2},
            r"train\.temperature: is an option of dfshield, ard, distillation alone; write train: ",
        ),
        (GRID, "synthesize", {"batc": 2}, "synthesize: unknown option 'batc'; did you mean 'batch'"),
        (GRID, "recipes", {"a b": {"train": "std"}}, "recipes"),
        (GRID, "recipes", {"mine": {"train": "hinge"}}, r"recipes\.mine\.train: 'hinge' is not known; there are"),
        (GRID, "recipes", {"mine": {"cotrain": "dats"}}, r"recipes\.mine\.cotrain: 'dats' is .*; did you mean 'dast'"),
        (GRID, "recipes", {"mine": {"cotrain": "dast", "train": "std"}}, r"recipes\.mine: its first key is one of"),
        (
            GRID,
            "recipes",
            {"mine": {"loss": "std"}},
            r"recipes\.mine: loss is the old form; write {train: NAME",
        ),
        (GRID, "recipes", {"mine": {"method": "dast"}}, r"recipes\.mine: method is the old form; write {train: NAME"),
        (GRID, "recipes", {"mine": {"train": "std", "loss": "std"}}, r"recipes\.mine\.loss: is said by train: already"),
        (GRID, "recipes", {"mine": "std"}, "recipes"),
        (GRID, "recipes", {"mine": None}, r"recipes\.mine: null takes out a built-in entry, and there is none"),
        (GRID, "recipes", {"mine": {"cotrain": "dast", "generator_rl": 1}}, "did you mean 'generator_lr'"),
        (
            GRID,
            "recipes",
            {"mine": {"train": "std", "generator_lr": 1}},
            r"recipes\.mine: unknown option 'generator_lr'",
        ),
        (GRID, "datasets/digits/by_recipe", {"dast": {"tau": 1}}, r"by_recipe\.dast: unknown option 'tau'"),
        (GRID, "cotrain", {"epoch": 1}, "cotrain: unknown option 'epoch'; did you mean 'epochs'"),
        (MINE, "harden/net/recipe", "ait", r"harden\.net\.recipe: 'ait' trains a generator in place of a training set"),
        (GRID, "recipes", {"none": {"train": "std"}}, r"recipes\.none: this name stands for the teacher itself"),
        (GRID, "sources", {"none": {"export": "train"}}, r"sources\.none: this name"),
        (
            GRID,
            "sources",
            {"mine": {"kind": "stolen"}},
            r"sources\.mine: kind is the old form; write {synthe",
        ),
        (GRID, "sources", {"mine": {"synthesize": "inversion", "lr": -1}}, r"sources\.mine\.lr: "),
        (GRID, "sources", {"a": {"augment": "mixup"}}, r"sources\.a: base is missing; an augmented"),
        (
            GRID,
            "sources",
            {"a": {"augment": "mixup", "base": "b"}},
            r"sources\.a\.base: 'b' is not one of class-high, class-low, dss, fixed",
        ),
        (GRID, "sources", {"a": {"augment": "mixup", "base": "real"}}, r"sources\.a\.base: 'real' is not one of"),
        (GRID, "sources", {"a": {"augment": "mixup", "base": "a"}}, r"sources\.a\.base: 'a' is not one of"),
        (GRID, "sources", {"a": {"augment": "rotate", "base": "dss"}}, r"sources\.a\.augment: 'rotate' is not known"),
        (GRID, "sources", {"a": {"synthesize": "inversion", "base": "fixed"}}, r"sources\.a: unknown option 'base'"),
        (
            GRID,
            "sources",
            {"r": {"export": "train", "images": 3}},
            r"sources\.r: export has no options; take out",
        ),
        (GRID, "sources", {"p": {"public": "mnist"}}, r"sources\.p\.public: 'mnist' is not known"),
        (GRID, "public", {"images": -1}, r"public\.images: "),
        (MINE, "harden/net/source", "public", r"harden\.net\.source: 'public' is real data"),
        (GRID, "sources", {"g": {"generate": "qimera", "metod": 1}}, "did you mean 'method'"),
        (GRID, "protocols", {"x": {"attack": "pgd", "threat": "linf:8"}}, r"protocols\.x\.threat: .*linf:8/255"),
        (GRID, "protocols", {"x": {"attack": "bim"}}, r"protocols\.x\.attack: 'bim' is not known"),
        (GRID, "protocols", {"x": {"attack": "fgsm", "steps": 3}}, r"protocols\.x: unknown option 'steps'"),
        (GRID, "defences", {"x": {"defend": "wall"}}, r"defences\.x\.defend: 'wall' is not known"),
        (
            GRID,
            "autoattack",
            "aa-paper",
            r"autoattack: is a protocol now; write .*version: paper",
        ),
        (GRID, "training", {"lr": 1}, "training: is called train now, as the stage; rename the section"),
        (GRID, "datasets/digits/synthesis", {"lr": 1}, "synthesis: is called synthesize now"),
        (GRID, "augment", {"mixup": {"alpha": 0}}, r"augment\.mixup\.alpha: "),
        (GRID, "diversity", {"bins": 1}, r"diversity\.bins: "),
        (GRID, "diversity", {"feature": "pixels"}, "diversity: unknown option 'feature'; did you mean 'features'"),
        (GRID, "datasets", {}, "there is nothing to do"),
        (MINE, "harden/net/mean", [0.5], "mean has 1 values but input_shape has 3 channels"),
        (MINE, "harden/net/std", [0.5, 0.5, 0], r"harden\.net\.std\.2: "),
        (MINE, "harden/net/factory", "net.py", r"harden\.net\.factory: "),
        (MINE, "harden/net/classes", 1, r"harden\.net\.classes: "),
        (MINE, "harden/net/input_shape", [3, 32], r"harden\.net\.input_shape"),
        (MINE, "harden/net/source", "mine", r"source: 'mine' is not one of class-high, class-low, cutmix, c"),
        (MINE, "harden/net/recipe", "mine", r"harden\.net\.recipe: 'mine' is not one of"),
        (MINE, "harden/net/evaluation", {}, r"harden\.net\.evaluation\.file: Field required"),
        (MINE, "harden/net/evaluation", {"file": "x.npz", "protocols": ["aa"]}, r"evaluation\.protocols: 'aa' is not"),
        (MINE, "harden/net/wieghts", "x", "did you mean 'weights'"),
        (MINE, "harden/my net", {}, "harden"),
        (GRID, "seeds", [1, 0, 1], "seeds: 1 is given 2 times; take one out"),
        (GRID, "seeds", [2**63], r"seeds\.0: Input should be less than"),
        (GRID, "datasets/digits/models", ["cnn-s", "cnn-s"], "digits: models: cnn-s is given 2 times"),
        (GRID, "methods", ["ours", "Ours"], "methods: ours is given 2 times"),
        (GRID, "datasets/digits/threat", "linf:0", "ε is 0 in linf:0"),
        (GRID, "datasets/digits/threat", "linf:1e999999999", "ε '1e999999999' in threat .* is not a number"),
        (GRID, "datasets/digits/threat", "l2:nan", "ε 'nan' in threat 'l2:nan' is not a number"),
        (GRID, "name", "Harden", "name: results/Harden is the place of cards, figures or tables"),
        (GRID, "name", "Figures", "name: results/Figures is the place of cards, figures or tables"),
        (GRID, "name", "table4.csv", r"name: results/table4\.csv is the place"),
        (GRID, "name", "x" * 101, "name: String should have at most 100 characters"),
        (GRID, "recipes", {"seed-0": {"train": "std"}}, r"recipes\.seed-0: is a name of files or folders of a run"),
        (GRID, "recipes", {"TRADES": {"train": "std"}}, "recipes: trades is given 2 times"),
        (GRID, "protocols", {"recall": {"attack": "pgd"}}, r"protocols\.recall: is the name of a diversity metric"),
        (
            GRID,
            "protocols",
            {"median-cw": {"attack": "pgd"}},
            r"protocols\.median-cw: is the name of a distance metric",
        ),
        (MINE, "harden/Eval", MINE["harden"]["net"], r"harden\.Eval: is a name of files or folders"),
        (MINE, "harden/Net", MINE["harden"]["net"], "harden: net is given 2 times"),
        (MINE, "harden/net/arguments", {"a": [{"lr": "1e-3"}]}, r"arguments\.a\.0\.lr: 1e-3 is a text to YAML"),
        (MINE, "harden/net/arguments", {"a": float("inf")}, r"arguments\.a: inf is no finite number"),
        (MINE, "harden/net/evaluation", {"file": "x", "protocols": ["pgd10"] * 2}, "protocols: pgd10 is given 2 times"),
    ],
)
def test_wrong_configs(base, path, value, message):
    with pytest.raises(InputError, match=message) as error:
        check_config(changed(base, path, value), "my.yaml")
    assert str(error.value).startswith("my.yaml: ")
    assert "\n" not in str(error.value)


def test_right_configs():
    plain = check_config(GRID).choices["recipes"]["dfshield-plain"]
    assert (plain.stage, plain.name, dict(plain.options)) == ("train", "dfshield", {"aggregate": 1, "loss": "dfshield"})
    assert check_config(MINE).harden["net"].evaluation.protocols == ("pgd10", "autoattack")
    assert check_config(changed(GRID, "train/lr", "1e-4")).train == {"lr": "1e-4"}  # YAML reads 1e-4 as a text


def test_entries_are_merged_by_name():
    own = {"mine": {"train": "trades", "beta": 3}, "dfshield": {"train": "dfshield", "tau": 0.1}, "mart": None}
    recipes = check_config(changed(GRID, "recipes", own)).choices["recipes"]
    assert (recipes["mine"].name, recipes["mine"].options["beta"]) == ("trades", 3)
    assert dict(recipes["dfshield"].options) == {"tau": 0.1, "loss": "dfshield"}
    assert "mart" not in recipes and recipes["trades"].options["aggregate"] == 1


def test_a_protocol_may_have_a_threat_of_its_own():
    own = {"latent": {"attack": "pgd", "steps": 3, "threat": "linf:10/255"}}
    protocol = check_config(changed(GRID, "protocols", own)).choices["protocols"]["latent"]
    assert protocol.threat == "linf:10/255" and dict(protocol.options) == {"steps": 3, "attack": "pgd"}


def test_a_config_that_is_kept_is_the_same_config():
    """Written as Snakemake's run folder has it and read again: built-in entries that were taken out stay out."""
    config = check_config(changed(GRID, "recipes", {"mart": None}))
    again = check_config(config.model_dump(mode="json", exclude_unset=True))
    assert again == config and again.choices == config.choices


def test_every_section_is_a_stage():
    assert set(sections()) <= set(Config.model_fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "a config is a mapping of keys to values, this is list"),
        ("", "this is NoneType"),
        ("name: [", "cannot be read as YAML"),
        ("name: !!python/object/apply:os.system [ls]", "cannot be read as YAML"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, message):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_config(file)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_a_config_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", ["config.yaml", "paper.yaml"])
def test_the_configs_that_come_along(name):
    assert load_config(Path(__file__).parents[2] / "config" / name).datasets


def nested(options: type[Options]) -> set[type[Options]]:
    found = {options}
    for field in options.model_fields.values():
        todo = [field.annotation]
        while todo:
            annotation = todo.pop()
            todo += getattr(annotation, "__args__", ())
            if isinstance(annotation, type) and issubclass(annotation, Options) and annotation not in found:
                found |= nested(annotation)
    return found


def test_every_key_of_a_config_says_what_it_is():
    classes = nested(Config)
    assert {c.__name__ for c in classes} >= {"Config", "DatasetConfig", "HardenConfig", "EvaluationConfig"}
    for options in classes:
        assert all(options.help_texts().values()), options


# --- where tables and built-in entries lie ---------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Folders of the config, of the work and of the workflow; tables in each on demand."""
    for name in ("config", "work", "home/config"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("dfshield.planning.config.PROGRAM", Path("/nowhere"))
    built_in = (ROOT / "config/defaults.yaml").read_text()
    (tmp_path / "home/config/defaults.yaml").write_text(built_in)
    return tmp_path


def test_tables_are_sought_beside_the_config_then_in_the_working_folder(places):
    (places / "config/c.yaml").write_text(yaml.safe_dump(GRID | {"tables": "t.yaml"}))

    def read():
        values = read_yaml(places / "config/c.yaml")
        return load_configs(values, [places / "config/c.yaml"], places / "home").tables

    with pytest.raises(
        InputError, match=r"c\.yaml: tables: t\.yaml: cannot be read, .*config/t\.yaml or .*work/t\.yaml"
    ):
        read()
    (places / "work/t.yaml").touch()
    assert read() == Path("t.yaml")
    (places / "config/t.yaml").touch()
    assert read() == places / "config/t.yaml"


def test_defaults_lie_beside_the_workflow_and_models_to_harden_need_no_tables(places):
    config = check_config(MINE, "my.yaml", home=places / "home")
    assert config.defaults == places / "home/config/defaults.yaml" and "dss" in config.choices["sources"]
    assert Plan.of(config).tables == {}
    with pytest.raises(InputError, match=r"my\.yaml: defaults: config/defaults\.yaml: cannot be read"):
        check_config(MINE, "my.yaml")
    with pytest.raises(InputError, match=r"config/tables\.yaml: cannot be read"):
        Plan.of(check_config(GRID, "my.yaml", home=places / "home"))


def test_config_files_are_read_again(tmp_path):
    """Snakemake merges what its own reader has made of them, and that has lost keys given twice."""
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(GRID))
    (tmp_path / "b.yaml").write_text("seeds: [1]\nseeds: [2]\n")
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    with pytest.raises(InputError, match=r"b\.yaml: seeds: is given twice, in lines 1 and 2"):
        load_configs(GRID | {"seeds": [2]}, files)
    files[1].write_text("seeds: [2]\n")
    assert load_configs(GRID | {"seeds": [2]}, files).seeds == (2,)
