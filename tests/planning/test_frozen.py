"""The config that a run was started with: what is kept of it, who may hold a run's folder, what jobs follow."""

import fcntl
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.snakemake import ROOT, TINY

from dfshield.core.errors import InputError
from dfshield.planning import frozen
from dfshield.planning.commands import ARGUMENTS
from dfshield.planning.config import Config, check_config
from dfshield.planning.plan import Plan

HOME = Path("results/tiny")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(frozen.RUN, "")
    for name in ("tables", "figures", "defaults"):
        Path(f"{name}.yaml").write_text((ROOT / f"config/{name}.yaml").read_text())


def values(**changes: Any) -> dict[str, Any]:
    return TINY | {name: f"{name}.yaml" for name in ("tables", "figures", "defaults")} | changes


def config(**changes: Any) -> Config:
    return check_config(values(**changes))


def test_a_kept_config_is_the_one_that_it_was_made_of() -> None:
    frozen.keep(HOME, frozen.texts_of(config()))
    again = frozen.load(HOME)
    files = {"tables", "figures", "defaults"}
    assert again.model_dump(exclude=files) == config().model_dump(exclude=files)
    assert Plan.of(again).cells("table4") == Plan.of(config()).cells("table4")
    assert frozen.kept(HOME) == frozen.texts_of(again)


def test_tables_and_built_in_entries_are_kept_with_it() -> None:
    frozen.keep(HOME, frozen.texts_of(config()))
    Path("tables.yaml").write_text("{}")
    Path("figures.yaml").write_text("{}")
    Path("defaults.yaml").unlink()
    kept = Plan.of(frozen.load(HOME))
    assert kept.tables and kept.figures and kept.sources


@pytest.mark.parametrize("edited", ["config", "tables", "figures", "defaults"])
def test_every_edit_is_another_config(edited: str) -> None:
    before = frozen.digest_of(frozen.texts_of(config()))
    changes: dict[str, Any] = {"seeds": [1]} if edited == "config" else {}
    if not changes:
        with Path(f"{edited}.yaml").open("a") as file:
            file.write("\n# edited\n")
    assert frozen.digest_of(frozen.texts_of(config(**changes))) != before


def test_a_job_follows_what_its_run_was_started_with() -> None:
    """Whatever the files say by now, the run's name among it."""
    started, texts = frozen.in_force(lambda: check_config(values()), main=True)
    frozen.keep(HOME, texts)
    edited = values(name="other", train={"epochs": 9})
    followed, kept = frozen.in_force(lambda: check_config(edited), main=False)
    assert (followed.name, followed.train, kept) == ("tiny", started.train, texts)
    assert frozen.in_force(lambda: check_config(edited), main=True)[0].name == "other"  # a run started now


def test_a_job_whose_run_has_another_config_by_now_is_refused() -> None:
    frozen.in_force(lambda: check_config(values()), main=True)
    frozen.keep(HOME, frozen.texts_of(config(seeds=[1])))
    with pytest.raises(InputError, match=r"results/tiny/config\.yaml: is not the config that this job's run"):
        frozen.in_force(lambda: check_config(values()), main=False)


def test_a_job_that_was_told_nothing_needs_the_run_to_have_its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen.keep(HOME, frozen.texts_of(config()))
    assert frozen.in_force(lambda: check_config(values()), main=False)[0].name == "tiny"
    with pytest.raises(InputError, match="is not the config"):
        frozen.in_force(lambda: check_config(values(seeds=[1])), main=False)


def test_one_config_at_a_time_holds_a_run() -> None:
    first = frozen.claim(HOME, frozen.texts_of(config()))
    second = frozen.claim(HOME, frozen.texts_of(config()))
    with pytest.raises(InputError, match="results/tiny: a run of this name with another config is going on"):
        frozen.claim(HOME, frozen.texts_of(config(seeds=[1])))
    assert frozen.kept(HOME) == frozen.texts_of(config())
    first.close()
    with pytest.raises(InputError, match="is going on"):
        frozen.claim(HOME, frozen.texts_of(config(seeds=[1])))
    second.close()
    frozen.claim(HOME, frozen.texts_of(config(seeds=[1]))).close()
    assert frozen.load(HOME).seeds == (1,)


def test_a_file_system_without_locks_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    frozen.claim(HOME, frozen.texts_of(config())).close()
    assert "results/tiny/.lock: cannot be locked (No locks available)" in capsys.readouterr().err
    assert frozen.kept(HOME) == frozen.texts_of(config())


def test_the_folder_of_a_hardened_model_is_of_one_run() -> None:
    folder = Path("results/harden/mine")
    frozen.own(folder, "a", write=False)
    assert not folder.exists()
    frozen.own(folder, "a")
    frozen.own(folder, "a")
    with pytest.raises(InputError, match=r"results/harden/mine: holds the model of the run 'a'.*another name"):
        frozen.own(folder, "b")


@pytest.mark.parametrize("name", frozen.FILES)
def test_a_config_that_was_damaged_is_refused(name: str) -> None:
    """Also by commands by hand, which read the file itself; the next run writes it anew."""
    texts = frozen.texts_of(config())
    frozen.keep(HOME, texts)
    assert parsed(HOME / "config.yaml") == 0
    path = HOME / name
    path.write_text(path.read_text().replace("a", "b", 1))
    for read in (frozen.load, lambda folder: parsed(folder / "config.yaml")):
        with pytest.raises(InputError, match=r"results/tiny/config\.yaml: it, .* is not as the run has kept it"):
            read(HOME)
    frozen.claim(HOME, texts).close()
    assert frozen.load(HOME)
    (HOME / frozen.SEAL).unlink()  # of an older program
    assert frozen.load(HOME)


def parsed(path: Path) -> int:
    """Read a config as `--config` does."""
    (convert,) = {argument.convert for argument in ARGUMENTS["cost"] if argument.name == "--config"}
    assert convert
    convert(path)
    return 0


def test_what_is_no_config() -> None:
    HOME.mkdir(parents=True)
    (HOME / "config.yaml").write_text(yaml.safe_dump([1]))
    with pytest.raises(InputError, match="is no config"):
        frozen.load(HOME)
