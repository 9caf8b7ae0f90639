"""The page of a run: what it holds, what it refuses, and how it looks in a real browser."""

import contextlib
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from support import browser
from support.cells import SPECS, cell, grid
from support.edits import CONFIG
from support.ledgers import make_ledger
from support.runs import fake_run

from dfshield.core.errors import InputError
from dfshield.planning import frozen
from dfshield.planning.config import check_config
from dfshield.planning.jobs import PAGE
from dfshield.planning.paths import HARDEN, STUDENT
from dfshield.planning.plan import Plan
from dfshield.report import figure, html, markdown, model_card, report_page, table
from dfshield.report.page import body_of, deeper, of_markdown, page
from dfshield.report.table import build

ENTRY = {
    **{"factory": "my_model:build", "weights": "w.pt", "input_shape": [1, 8, 8], "classes": 10, "mean": [0.3]},
    **{"std": [0.38], "threat": "linf:8/255", "evaluation": {"file": "eval.npz"}},
}
FRONT = Path("results/figures/front.png")
VOID = {"meta", "link", "img", "br", "hr"}


class Tags(HTMLParser):
    """Tags of a page, each of which has to be closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """A run with tables 2 and 4 and a model of its own, all made, and the folder that it is in."""
    folder = tmp_path_factory.mktemp("run")
    specs = yaml.safe_load(Path(CONFIG["tables"]).read_text())
    few = {name: specs[name] for name in ("table4", "table2")}
    few["table4"]["rows"] = [row for row in few["table4"]["rows"] if row["method"] in ("Undefended", "DaST", "Ours")]
    (folder / "few.yaml").write_text(yaml.safe_dump(few, sort_keys=False))
    front = yaml.safe_load(Path(CONFIG["tables"]).with_name("figures.yaml").read_text())["front"]
    (folder / "front.yaml").write_text(yaml.safe_dump({"front": front}))
    of = {"tables": "few.yaml", "figures": "front.yaml", "seeds": [0], "harden": {"mine": ENTRY}}
    with contextlib.chdir(folder):
        plan = Plan.of(check_config(CONFIG | of))
        fake_run(plan, [*plan.cells("table4"), *plan.harden_cells("mine")])
        frozen.keep(frozen.folder_of(plan.config.name), frozen.texts_of(plan.config))
        for name in ("table4", "table2"):
            table.run(plan, name, Path(f"results/{name}.csv"))
        figure.run(plan, "front", FRONT)
        student = Path(plan.place(HARDEN, "mine", source="dss", recipe="dfshield").path(STUDENT))
        model_card.run(plan, "mine", student, Path("results/harden/mine"))
    return folder, plan


@pytest.fixture
def run(made: tuple[Path, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The plan of a copy of that run, in the current folder."""
    folder, plan = made
    shutil.copytree(folder, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    return plan


def test_the_page_has_all_that_the_run_made(run: Plan):
    report_page.run(run, Path(PAGE))
    text = Path(PAGE).read_text()
    tags = Tags(text).seen
    anchors = {attrs["id"] for _, attrs in tags if "id" in attrs}
    links = [attrs["href"] for tag, attrs in tags if tag == "a"]
    assert {link.removeprefix("#") for link in links} <= anchors
    assert {"table4", "table2", "figure-front", "model-mine", "config"} <= anchors
    pictures = [attrs["src"].partition(";")[0] for tag, attrs in tags if tag == "img"]
    shown = len(re.findall(r"^!\[", Path("results/harden/mine/MODEL_CARD.md").read_text(), re.MULTILINE))
    assert shown >= 2 and pictures == ["data:image/svg+xml"] + ["data:image/png"] * shown
    assert all(attrs["alt"] for tag, attrs in tags if tag == "img")
    for said in (
        "Table 4. Robustness without training data",
        "DaST",
        "95 % Wilson interval",
        "Student minimises",
        run.figure("front").caption,
    ):
        assert said in text
    assert "name: " + run.config.name in text  # the config in force
    assert "are not made yet" not in text and "pipeline_tag" not in text
    again = report_page.text(run)
    assert again == text


def test_the_page_needs_nothing_else(run: Plan):
    report_page.run(run, Path(PAGE))
    text = Path(PAGE).read_text()
    for tag, attrs in Tags(text).seen:
        assert tag != "script" and not any(name.startswith("on") for name in attrs)
        assert all(attrs.get(name, "data:").startswith(("data:", "#")) for name in ("src", "href"))
    assert "url(" not in text and "@import" not in text


def test_what_is_not_there_is_named(run: Plan):
    shutil.rmtree("results/harden")
    Path("results/table2.csv").unlink()
    text = report_page.text(run)
    assert "2 of 4 tables, figures and cards of this config are not made yet" in text
    assert "results/table2.csv, results/harden/mine/MODEL_CARD.md" in text
    assert 'id="table4"' in text and 'id="table2"' not in text and 'id="models"' not in text


def test_a_table_of_other_evidence_is_refused(run: Plan):
    Path(PAGE).write_text("an earlier page")
    path = Path(run.cells("table4")[0].ledger)
    other = make_ledger(path.with_name("other.h5"), 111, 22)
    assert other not in Path("results/table4.csv").read_text()
    lines = Path("results/table4.csv").read_text().splitlines(keepends=True)
    sha256 = lines[1].rstrip().rpartition(",")[2]
    Path("results/table4.csv").write_text("".join(lines).replace(sha256, other))
    with pytest.raises(InputError, match=r"table4\.csv: is of another run, or older than its evidence; make it again"):
        report_page.run(run, Path(PAGE))
    Path("results/table4.csv").write_text("".join(lines[:-1]))
    with pytest.raises(InputError, match=r"table4\.csv: is of another run"):
        report_page.run(run, Path(PAGE))
    assert Path(PAGE).read_text() == "an earlier page"


def test_a_figure_of_other_evidence_is_refused(run: Plan):
    made = FRONT.with_suffix(".csv")
    made.write_text(made.read_text().replace("Ours", "Theirs"))
    with pytest.raises(InputError, match=r"front\.png: is of another run, or older than its evidence; make the figure"):
        report_page.text(run)
    made.unlink()
    with pytest.raises(InputError, match=r"front\.csv: no such file"):
        report_page.text(run)


def test_a_table_without_its_page_is_refused(run: Plan):
    Path("results/table4.html").unlink()
    with pytest.raises(InputError, match=r"table4\.html: no such file .*make the table again"):
        report_page.text(run)


def test_a_card_of_another_run_or_with_another_picture_is_refused(run: Plan):
    folder = Path("results/harden/mine")
    picture = folder / "accuracy.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole + b" ")
    with pytest.raises(InputError, match=r"accuracy\.png: is not the picture"):
        report_page.text(run)
    picture.write_bytes(whole)
    (folder / ".run").write_text("another\n")
    with pytest.raises(InputError, match="holds the model of the run 'another'"):
        report_page.text(run)


# --- tables as HTML --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_every_table_is_whole_and_has_the_figures_of_its_markdown(name: str, tmp_path: Path):
    """Of the tables whose cells the support can make."""
    spec = SPECS[name]
    cells = grid(tmp_path, spec, "digits", ["cnn-s", "cnn-m"], 2) if spec.metrics else []
    rows = build(cells, spec)
    text = html.render(rows, spec)
    tags = Tags(text)
    assert {tag for tag, _ in tags.seen} >= {"table", "thead", "tbody", "h1"}
    # captions say the heading again; Markdown has its heads once a block
    told = re.sub(r"<caption>.*?</caption>|<thead>.*?</thead>", "", body_of(text), flags=re.DOTALL)
    printed = re.sub(r"^\|.*\|\n(?=\| ---)", "", markdown.render(rows, spec), flags=re.MULTILINE)
    figures, expected = (re.findall(r"\d+\.\d+", re.sub(r"<[^>]*>", " ", each)) for each in (told, printed))
    assert sorted(figures) == sorted(expected) and (figures or not spec.metrics)


def test_groups_span_their_columns_and_rows_have_heads(tmp_path: Path):
    rows = build(grid(tmp_path, SPECS["table4"], "digits", ["cnn-s", "cnn-m"], 1), SPECS["table4"])
    tags = Tags(html.render(rows, SPECS["table4"]).partition("<details>")[0] + "</main></body></html>").seen
    spans = [(attrs["scope"], attrs["colspan"]) for tag, attrs in tags if tag == "th" and "colspan" in attrs]
    assert spans == [("colgroup", "3"), ("colgroup", "3"), ("rowgroup", "7")]
    scopes = [attrs["scope"] for tag, attrs in tags if tag == "th"]
    assert scopes.count("row") == len({row.method for row in rows}) and scopes.count("col") == 7


def test_all_text_is_escaped(tmp_path: Path):
    make_ledger(tmp_path / "a.h5", 150, 50)
    bad = "<img src=x onerror=alert(1)> & \"'"
    spec = SPECS["table4"].model_copy(update={"title": bad, "caption": bad})
    text = html.render(build([cell(tmp_path / "a.h5", method=bad)]), spec)
    assert "<img" not in text and text.count("&lt;img src=x onerror=alert(1)&gt; &amp; ") >= 4
    Tags(text)


# --- pages -----------------------------------------------------------------------------------------------------------


def test_markdown_as_html():
    text = "---\ntags: [x]\n---\n# A <b>\n\n| a | b |\n| --- | ---: |\n| `x<y` | 1.5<sup>†</sup> |\n\n"
    text += "![what it is](a.png)\n\n![gone](http://example.org/b.png)\n\n<script>alert(1)</script>\n"
    made = of_markdown(text, {"a.png": "data:image/png;base64,QQ=="})
    Tags(made)
    assert made.startswith("<h1>A &lt;b&gt;</h1>\n") and "tags" not in made
    assert '<td class="number">1.5<sup>†</sup></td>' in made and "<code>x&lt;y</code>" in made
    assert '<img src="data:image/png;base64,QQ==" alt="what it is"' in made
    assert "gone" in made and "example.org" not in made and "<script" not in made
    assert made.count('<div class="scroll"') == made.count("<table>") == 1


def test_headings_go_deeper_but_not_below_the_sixth():
    assert deeper("<h1 id='a'>x</h1><h5>y</h5><hr>", 2) == "<h3 id='a'>x</h3><h6>y</h6><hr>"


# --- in a browser ----------------------------------------------------------------------------------------------------

NEEDS = os.environ.get("DFSHIELD_NEEDS_CHROMIUM")
in_browser = pytest.mark.skipif(
    not (browser.CHROMIUM or NEEDS), reason="needs the Debian package chromium, which is not on PATH"
)


@in_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_the_page_fits_and_is_whole(run: Plan, tmp_path: Path, width: int):
    report_page.run(run, Path(PAGE))
    found = browser.measured(Path(PAGE), width, tmp_path)
    assert (found["width"], found["scrolled"], found["wide"]) == (width, width, [])
    assert found["images"] >= 3 and found["missing"] == 0
    assert found["tables"] >= 5 and found["dead"] == 0 and found["scripts"] == 0
    assert found["console"] == []
    browser.screenshot(Path(PAGE), width, 1000, tmp_path / "shot.png", tmp_path)
    assert (tmp_path / "shot.png").stat().st_size > 20_000


@in_browser
def test_the_browser_finds_what_is_wrong(tmp_path: Path):
    """What the test above would see: a wide element, a missing picture, a dead link, an error."""
    body = '<nav><a href="#gone">x</a></nav><p style="width:2000px">wide</p><img src="data:image/png;base64,QQ==">'
    text = page("bad", body).replace("default-src 'none'", "default-src 'unsafe-inline'")
    (tmp_path / "bad.html").write_text(text.replace("</main>", "<script>undefined_name</script></main>"))
    found = browser.measured(tmp_path / "bad.html", 390, tmp_path)
    assert found["scrolled"] > 390 and found["wide"] and found["missing"] == found["dead"] == 1
    assert any("undefined_name" in line for line in found["console"])
