"""A page in a real browser, headless Chromium, at a given width: what it logs, what is missing, what is too wide."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
MEASURE = """
<script>
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument;
  const width = page.documentElement.clientWidth;
  const inside = (element) => element.closest(".scroll, pre, caption");
  const wide = [...page.querySelectorAll("body *")].filter(
    (element) => !inside(element) && element.getBoundingClientRect().right > width + 0.5);
  const found = {
    width: width,
    scrolled: page.documentElement.scrollWidth,
    wide: wide.map((element) => element.outerHTML.slice(0, 80)),
    missing: [...page.images].filter((image) => !(image.complete && image.naturalWidth > 0)).length,
    images: page.images.length,
    tables: page.querySelectorAll("table").length,
    rows: page.querySelectorAll("tbody tr").length,
    dead: [...page.querySelectorAll("nav a")].filter((a) => !page.getElementById(a.hash.slice(1))).length,
    scripts: page.scripts.length,
    text: page.body.innerText.length,
  };
  document.querySelector("#found").textContent = JSON.stringify(found);
});
</script>
"""


def _framed(page: str, width: int, height: int, script: str) -> str:
    """A page that shows another in a frame: windows of a browser have a least width, frames have none."""
    frame = f'<iframe width="{width}" height="{height}" style="border:0" srcdoc="{escape(page)}"></iframe>'
    head = '<!doctype html><meta charset="utf-8"><style>body{margin:0}</style><pre id="found" hidden></pre>'
    return f"{head}{script}{frame}"


def _run(folder: Path, *flags: str) -> tuple[str, str]:
    """What a browser writes to its two streams: files, since processes that it leaves behind hold pipes open."""
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
    words += ["--no-first-run", f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr"]
    out, said = folder / "browser.out", folder / "browser.err"
    with out.open("w") as stdout, said.open("w") as stderr:
        subprocess.run(
            [*words, "--virtual-time-budget=5000", *flags], stdout=stdout, stderr=stderr, timeout=60, check=True
        )
    return out.read_text(encoding="utf-8"), said.read_text(encoding="utf-8", errors="replace")


def measured(page: Path, width: int, folder: Path) -> dict[str, Any]:
    """What a browser finds on `page` at a width of so many pixels, with what it logs as ``console``."""
    wrapped = folder / f"measured-{width}.html"
    wrapped.write_text(_framed(page.read_text(encoding="utf-8"), width, 900, MEASURE), encoding="utf-8")
    dom, log = _run(folder, "--dump-dom", wrapped.as_uri())
    found = re.search(r'<pre id="found"[^>]*>(.*?)</pre>', dom, re.DOTALL)
    assert found and found[1], log[-2000:]
    values: dict[str, Any] = json.loads(unescape(found[1]))
    return values | {"console": [line for line in log.splitlines() if "CONSOLE" in line]}


def screenshot(page: Path, width: int, height: int, out: Path, folder: Path) -> None:
    """A picture (PNG) of the upper part of `page`."""
    wrapped = folder / f"shot-{width}.html"
    wrapped.write_text(_framed(page.read_text(encoding="utf-8"), width, height, ""), encoding="utf-8")
    size = f"--window-size={max(width, 500)},{height}"
    _run(folder, size, f"--screenshot={out}", wrapped.as_uri())
