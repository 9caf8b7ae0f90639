"""Lines of figures: over the size of perturbations and over options, with the figures of the ledgers."""

import statistics
from pathlib import Path

import pytest
from support.figures import CONFIG, FIGURES, OWN, Made, accuracies, read
from support.runs import fake_run

from dfshield.core.threat import parse_threat
from dfshield.evaluation.ledger import confidence_interval
from dfshield.planning.cells import swept
from dfshield.planning.config import check_config
from dfshield.planning.plan import Plan
from dfshield.report import plots, points
from dfshield.report.figure import run
from dfshield.report.table import build

pytestmark = pytest.mark.slow


def test_lines_over_the_size_of_perturbations(made: Made) -> None:
    """Mean, lowest and highest of the seeds at each ε, and clean accuracy at ε = 0."""
    plan, out = made("epsilons")
    drawn = {(row["method"], float(row["eps"])): row for row in read(out)}
    expected = {
        (method, parse_threat(threat).eps): values
        for (method, threat, _), values in accuracies(plan, "epsilons", "pgd10").items()
    }
    assert len(expected) == 3 * 4
    expected |= {(method, 0.0): values for (method, _, _), values in accuracies(plan, "epsilons", "clean").items()}
    assert {key: row["metric"] for key, row in drawn.items()} == {
        key: "clean" if key[1] == 0 else "pgd10" for key in expected
    }
    for key, values in expected.items():
        row, ends = drawn[key], (min(values), max(values))
        assert row["value"] == f"{statistics.fmean(values):.2f}"
        assert (row["value_low"], row["value_high"]) == tuple(f"{end:.2f}" for end in ends)
        assert (row["interval"], row["seeds"], row["n"]) == ("seeds", "2", "200")
    assert any(row["value_low"] < row["value_high"] for row in drawn.values())


def test_lines_of_one_seed_have_the_interval_of_its_images(made: Made) -> None:
    plan, out = made("figure5")  # a stand-in has its first seed
    expected = accuracies(plan, "figure5", "autoattack")
    drawn = {float(row["data_share"]): row for row in read(out)}
    assert sorted(drawn) == sorted(swept(variant)["share"] for _, _, variant in expected) == [0.1, 0.25, 0.5, 1]
    for (_, _, variant), (value,) in expected.items():
        row = drawn[swept(variant)["share"]]
        assert row["value"] == f"{value:.2f}" and row["interval"] == "95 %"
        low, high = confidence_interval(round(2 * value), 200)
        assert (row["value_low"], row["value_high"]) == (f"{low:.2f}", f"{high:.2f}")
    drawn_points = points.lines(FIGURES["figure5"], build(plan.figure_cells("figure5")))
    assert plots.intervals(drawn_points) == "Intervals: one seed, 95 % Wilson interval of 200 images."


def by_metric(plan: Plan, figure: str) -> dict[tuple[str, str], float]:
    """The accuracy of each of a figure's cells, by method and metric; of one seed."""
    return {
        (method, metric): values[0]
        for metric in plan.figure(figure).metrics
        for (method, _, _), values in accuracies(plan, figure, metric).items()
    }


def test_lines_over_an_option_of_the_defence(made: Made) -> None:
    """A line a metric, its points the rows by the Δ of the defence that each has."""
    plan, out = made("transformation-figure6")
    expected = {
        (metric, {"Δ = 0.05": 0.05, "Δ = 0.2": 0.2, "Δ = 0.4": 0.4}[method]): f"{value:.2f}"
        for (method, metric), value in by_metric(plan, "transformation-figure6").items()
    }
    rows = read(out)
    assert {(row["metric"], float(row["delta"])): row["value"] for row in rows} == expected
    assert list(dict.fromkeys(row["metric"] for row in rows)) == ["clean", "pgd-adaptive", "white-box-transfer"]
    assert [row["delta"] for row in rows] == ["0.05", "0.2", "0.4"] * 3


def test_lines_over_an_option_of_the_attack(made: Made) -> None:
    """A line a method, its points the metrics by the draws that each protocol averages."""
    plan, out = made("transformation-figure7")
    expected = {
        (method, metric.rpartition("-")[2]): f"{value:.2f}"
        for (method, metric), value in by_metric(plan, "transformation-figure7").items()
    }
    rows = read(out)
    assert {(row["method"], row["eot"]): row["value"] for row in rows} == expected
    assert [row["eot"] for row in rows] == ["1", "5", "20", "80"] * 2


def test_a_line_has_the_numbers_of_the_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of the rows' names."""
    monkeypatch.chdir(folder)
    moved = {"defend": "distribution-transfer", "time": 0.33}
    plan = Plan.of(check_config(CONFIG | {"name": "moved", "defences": {"distribution-transfer": moved}}))
    fake_run(plan, plan.figure_cells("transfer-figure4"))
    run(plan, "transfer-figure4", Path("moved.png"))
    drawn = {row["method"]: row["time"] for row in read(Path("moved.png"))}
    assert drawn == {"t = 0.1": "0.1", "t = 0.47": "0.33", "t = 0.7": "0.7"}


@pytest.mark.parametrize("name", [name for name in OWN if FIGURES[name].layout == "lines"])
def test_titles_of_axes_lie_apart(made: Made, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    plan, out = made(name)
    seen = []

    def look(figure, path):
        figure.draw_without_rendering()
        boxes = [axes.xaxis.label.get_window_extent() for axes in figure.axes if axes.xaxis.label.get_text()]
        seen.append([one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i]])
        save(figure, path)

    save = plots.drawing.save
    monkeypatch.setattr(plots.drawing, "save", look)
    run(plan, name, Path("apart") / out.name)
    assert len(seen) == 1 and not any(seen[0])
