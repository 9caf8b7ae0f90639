"""Pages of HTML in one file: style and pictures are part of them, nothing is loaded and nothing runs."""

import base64
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt

STYLE = """
:root{--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--shade:#f6f8fa;--link:#0b5cad}
*{box-sizing:border-box}
body{margin:0 auto;max-width:74rem;padding:1rem;color:var(--ink);background:#fff;
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;overflow-wrap:anywhere}
h1,h2,h3,h4,h5{line-height:1.25;margin:2rem 0 .6rem}
h1{font-size:1.7rem;margin-top:.5rem}
h2{font-size:1.35rem;border-bottom:1px solid var(--line);padding-bottom:.25rem}
h3{font-size:1.12rem}h4,h5{font-size:1rem}
p,ul,pre,details,.scroll{margin:.6rem 0}p,li{max-width:52rem}
a{color:var(--link)}
nav ul{margin:.2rem 0;padding-left:1.2rem}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:4px;width:fit-content;max-width:100%;
 position:relative}
table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums}
sup{line-height:0}
caption{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
th,td{padding:.3rem .6rem;text-align:left;vertical-align:top;border-bottom:1px solid var(--line);overflow-wrap:normal}
thead th,thead td{background:var(--shade);vertical-align:bottom}
thead .group{text-align:center;border-left:1px solid var(--line)}
td.number,th.number{text-align:right;white-space:nowrap}
td:not(.number){min-width:6rem}
tbody th{font-weight:500;white-space:nowrap}
tbody tr>th:first-child{position:sticky;left:0;background:#fff}
tbody tr>th.block{background:var(--shade);font-weight:600}
tbody tr:last-child>*{border-bottom:0}tbody+tbody tr:first-child>*{border-top:1px solid var(--line)}
.within{display:block;color:var(--soft);font-size:.88em}
.notes{color:var(--soft);font-size:.86rem;padding-left:1.2rem}.notes li{max-width:60rem;margin:.2rem 0}
pre{overflow-x:auto;background:var(--shade);border:1px solid var(--line);border-radius:4px;padding:.6rem;
 font-size:.82rem;overflow-wrap:normal}
code{font-family:ui-monospace,"DejaVu Sans Mono",monospace;font-size:.92em}
img{max-width:100%;height:auto;display:block}
figure{margin:.8rem 0}figcaption{color:var(--soft);font-size:.9rem}
summary{cursor:pointer;font-weight:600}
article{border-left:3px solid var(--line);padding-left:.9rem}
@media(max-width:30rem){body{padding:.7rem}article{border-left:0;padding-left:0}}
@media print{.scroll,pre{overflow:visible}}
"""
TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
"""Pictures that pages show, by suffix; SVG as a picture runs no script and loads nothing."""
START, END = "<main>\n", "</main>\n"


def page(title: str, body: str) -> str:
    """A whole page with the HTML `body`; `title` is plain text."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # nothing may be loaded, whatever a text says; the empty icon keeps browsers from asking for one
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n'
        f"{START}{body}{END}</body>\n</html>\n"
    )


def body_of(text: str) -> str:
    """The body that `page` was given."""
    return text.partition(START)[2].rpartition(END)[0]


def deeper(html: str, levels: int) -> str:
    """HTML whose headings are so many levels further down, the sixth at most."""
    return re.sub(r"<(/?)h([1-6])\b", lambda m: f"<{m[1]}h{min(int(m[2]) + levels, 6)}", html)


def data_uri(path: Path) -> str:
    """The picture in a file as an address that holds it."""
    return f"data:{TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def scrolling(table: str) -> str:
    """A table in a box of its own, which scrolls where the table is wider than the page."""
    return f'<div class="scroll" tabindex="0">\n{table}</div>\n'


def of_markdown(text: str, pictures: Mapping[str, str]) -> str:
    """Markdown as HTML. `pictures` has the address of each picture by its name; one without is left to its title.

    Tags in the text are shown as text, but for ``<sup>``.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL))
    for token in tokens:
        for child in token.children or ():
            if child.type == "image" and str(child.attrs["src"]) in pictures:
                child.attrs["src"] = pictures[str(child.attrs["src"])]
            elif child.type == "image":
                child.type, child.children = "text", None
    html = re.sub(r"&lt;(/?)sup&gt;", r"<\1sup>", str(parser.renderer.render(tokens, parser.options, {})))
    html = html.replace(' style="text-align:right"', ' class="number"')
    return re.sub(r"<table>.*?</table>\n", lambda found: scrolling(found[0]), html, flags=re.DOTALL)
