"""`dfshield export-csv`: the rows of a ledger as a table of one row per image."""

from pathlib import Path

import numpy as np
import pandas
import pytest
from support.ledgers import make_ledger

from dfshield.cli import main
from dfshield.core.errors import InputError
from dfshield.evaluation.ledger import read_ledger
from dfshield.tools import export_csv

COLUMNS = ["index", "label", "clean_prediction", "prediction", "broken", "component", "margin", "linf", "l2"]


def test_every_image_is_a_row(tmp_path: Path) -> None:
    """Of 200 images 50 are wrong without attack and 90 more under it; broken ones have a perturbation of 16 x 0.05."""
    make_ledger(tmp_path / "l.h5", 150, 60)
    export_csv.run(tmp_path / "l.h5", tmp_path / "l.csv")
    found = pandas.read_csv(tmp_path / "l.csv", keep_default_na=False, na_values={"linf": [""], "l2": [""]})
    ledger = read_ledger(tmp_path / "l.h5")
    assert list(found) == COLUMNS and found["index"].tolist() == list(range(200))
    for name in ("label", "clean_prediction", "prediction", "broken", "margin"):
        assert (found[name].to_numpy() == getattr(ledger, name)).all()
    assert found["component"].tolist() == [""] * 60 + ["pgd"] * 90 + ["clean"] * 50
    attacked = found["component"] == "pgd"
    assert found.loc[~attacked, ["linf", "l2"]].isna().all(axis=None)
    size = float(np.float16(0.05))
    assert found.loc[attacked, "linf"].to_numpy() == pytest.approx(size)
    assert found.loc[attacked, "l2"].to_numpy() == pytest.approx(4 * size)


def test_a_ledger_without_perturbations(tmp_path: Path) -> None:
    make_ledger(tmp_path / "l.h5", 150, 150)
    export_csv.run(tmp_path / "l.h5", tmp_path / "l.csv")
    found = pandas.read_csv(tmp_path / "l.csv")
    assert found["linf"].isna().all() and found["broken"].sum() == 50


def test_standard_output_has_the_same_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_ledger(tmp_path / "l.h5", 150, 60)
    main(["export-csv", str(tmp_path / "l.h5"), "--out", str(tmp_path / "l.csv")])
    assert capsys.readouterr().out == ""
    main(["export-csv", str(tmp_path / "l.h5")])
    assert capsys.readouterr().out == (tmp_path / "l.csv").read_text()


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.h5").write_text("<html>")
    with pytest.raises(InputError, match=r"l\.h5: "):
        export_csv.run(tmp_path / "l.h5", tmp_path / "l.csv")
    assert not (tmp_path / "l.csv").exists()
