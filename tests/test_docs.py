"""The documentation: links of the files in the repository, and the site that is built of them."""

import functools
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dfshield import registry
from dfshield.models.probe import CHECKS
from dfshield.planning.stages import STAGES

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md")]
FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""Tags that make a browser load what their attribute names."""


def anchors(path: Path) -> set[str]:
    """Anchors of a Markdown file's headings, as repository hosts make them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere_in_the_repository(document):
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    for path, _, anchor in re.findall(r"\]\(([^)\s#:]*)(#([^)\s]*))?\)", text):
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


# What the answers quote

OTHERS_SAY = ("No space left on device",)
"""Quotes of what the operating system says."""


def said() -> str:
    """The program's texts: string literals put together, values as dots."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("dfshield/**/*.py")))
    whole = re.sub(r"\"\s*\n\s*f?\"", "", sources)
    return re.sub(r"\{[^{}]*\}", "…", whole)


def test_answers_quote_what_the_program_says():
    answers = re.sub(r"^#.*$", "", (ROOT / "docs/faq.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    quotes = [" ".join(quote.split()) for quote in re.findall(r"`([^`]+)`", answers)]
    sentences = [quote for quote in quotes if quote.count(" ") >= 3 and not quote.startswith("dfshield ")]
    assert len(sentences) > 10
    text, missing = said(), []
    for sentence in sentences:
        parts = [part.strip(" ;:") for part in sentence.split("…")]
        missing += [part for part in parts if len(part) > 3 and part not in text and part not in OTHERS_SAY]
    assert not missing


# The site


class Page(HTMLParser):
    """What a page makes a browser load, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.classes: set[str] = set()
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.classes |= set((values.get("class") or "").split())
        if tag in LOADS and values.get(LOADS[tag]):
            self.loads.append(values[LOADS[tag]])

    def handle_data(self, data):
        self.text += data

    @functools.cached_property
    def words(self) -> str:
        return " ".join(self.text.split())


read = functools.cache(Page)


def plain(text: str) -> str:
    """A text as a page shows it: code without its quotes."""
    return " ".join(text.replace("`", "").split())


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built without a warning."""
    for name in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


def test_nothing_is_loaded_from_the_network(site):
    pages = {path: read(path) for path in site.rglob("*.html")}
    assert len(pages) > 40
    for path, page in pages.items():
        assert page.loads, path
        assert not [url for url in page.loads if re.match(r"(\w+:)?//", url)], path
        assert "mermaid" not in page.classes, f"{path}: its script would come from the network"
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", path.read_text(encoding="utf-8")), path


def test_files_from_outside_of_the_folder_are_pages(site):
    start = read(site / "index.html").text
    assert "Harden your model" in start
    assert "what waits for it" in start and "flowchart" not in start  # a table in the place of the picture
    for name, words in {
        "index": "What the demo shows",
        "contributing": "Default values",
        "changelog": "Unreleased",
        "example-cifar10": "What came out",
    }.items():
        assert words in read(site / f"{name}.html").text


def test_links_to_code_lead_to_the_reference(site):
    text = (site / "concepts.html").read_text(encoding="utf-8")
    assert 'href="reference/stages/synthesize.html"' in text
    assert "../dfshield/" not in "".join(path.read_text(encoding="utf-8") for path in site.glob("*.html"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_a_page_with_all_its_options(site, stage):
    page = read(site / f"reference/stages/{stage}.html").words
    assert STAGES[stage].about in page
    options = STAGES[stage].options
    if options is None:
        return
    classes = [options]
    if options.entries:
        classes += [entry.options_class(options) for entry in options.entries[1].values()]
    for each in classes:
        for name, text in each.help_texts().items():
            assert name in page
            assert plain(text) in page, name


def test_a_registry_has_a_page_with_all_its_entries(site):
    found = {path.stem.upper() for path in (site / "reference/registries").glob("*.html")}
    tables = {name: getattr(registry, name) for name in registry.__all__}
    named = {name: table for name, table in tables.items() if isinstance(table, dict)}
    wanted = {name for name, table in named.items() if isinstance(next(iter(table.values())), registry.Entry)}
    assert found == wanted
    for name in found:
        page = read(site / f"reference/registries/{name.lower()}.html").words
        for key, entry in tables[name].items():
            assert key in page and entry.title in page and plain(entry.about) in page


def test_the_reference_has_the_api_the_checks_and_the_config(site):
    api = read(site / "reference/python.html").words
    assert all(words in api for words in ("keep_accuracy", "Harden a copy of", "Attack model on images", "mixed"))
    checks = read(site / "reference/network.html").words
    assert all(plain(check.remedy) in checks for check in CHECKS.values())
    config = read(site / "reference/config.html").words
    assert "real images to measure on, after everything is decided" in config


def test_make_docs_is_strict_and_its_folder_is_ignored():
    rule = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ndocs: ")[2].partition("\n\n")[0]
    assert "mkdocs build --strict" in rule
    assert "/site/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
