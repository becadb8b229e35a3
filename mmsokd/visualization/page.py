"""The parts of an HTML page that needs nothing beside itself: no network, no script, no other file."""

import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from mmsokd.visualization.charts import Chart, Matrix, data_uri, svg_uris

_CSS = """
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #fff; --ink: #1f2430; --dim: #667085; --line: #e3e6eb;
  --accent: #4269d0; --better: #2b8a3e; --worse: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --ground: #12151b; --card: #1a1f28; --ink: #e4e8ef; --dim: #98a2b3;
  --line: #2c333f; --accent: #8fb0ff; --better: #69c47d; --worse: #f0915a; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header, footer { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 36px; }
h1 { margin: 0; font-size: 28px; line-height: 1.2; letter-spacing: -.01em; overflow-wrap: anywhere; }
.sub { margin: 6px 0 0; color: var(--dim); overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 18px 0 22px; padding: 0; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
section { margin: 0 0 20px; padding: 20px 22px 22px; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; }
h2 { margin: 0 0 4px; font-size: 19px; }
h3 { margin: 22px 0 8px; font-size: 15px; }
p { margin: 6px 0 12px; max-width: 78ch; overflow-wrap: anywhere; }
.note, figcaption, footer { color: var(--dim); }
.missing { padding: 10px 14px; border-left: 3px solid var(--dim); background: var(--ground); border-radius: 0 8px 8px 0;
  color: var(--dim); }
.cards { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 12px; margin: 0 0 20px; }
.card { padding: 14px 16px; background: var(--card); border: 1px solid var(--line); border-radius: 12px; min-width: 0; }
.card b { display: block; font-size: 19px; line-height: 1.3; font-weight: 650; overflow-wrap: anywhere; }
.card span { color: var(--dim); font-size: 13px; }
.wide { overflow-x: auto; margin: 8px 0 12px; }
table { border-collapse: collapse; min-width: min(100%, 640px); font-variant-numeric: tabular-nums; }
th, td { padding: 7px 14px 7px 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--dim); font-weight: 600; font-size: 13px; white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
td.number, th.number { text-align: right; white-space: nowrap; }
td { white-space: nowrap; }
td.text { white-space: normal; min-width: 9em; }
.pairs td { white-space: normal; overflow-wrap: anywhere; }
tr.main td { font-weight: 650; }
.pairs { width: 100%; }
.pairs td:first-child { width: 34%; color: var(--dim); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 18px 22px; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; height: auto; }
.drawings { display: grid; gap: 18px; }
.drawings img { border-radius: 8px; background: #fff; }
pre { margin: 10px 0 0; padding: 14px; overflow: auto; max-height: 70vh; background: var(--ground); border-radius: 8px;
  font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
summary { cursor: pointer; color: var(--accent); }
.up { color: var(--better); } .down { color: var(--worse); }
footer { padding-bottom: 36px; font-size: 13px; }
@media (max-width: 600px) { main, header, footer { padding-left: 12px; padding-right: 12px; } section { padding: 16px; }
  h1 { font-size: 23px; } .cards { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .charts { grid-template-columns: 1fr; } }
@media print { section { break-inside: avoid; } nav { display: none; } }
"""


_LONG = 32  # letters, from which on a cell of a table has several lines


class Html(str):
    """Text that is HTML already; any other is escaped."""


def safe(value: object) -> Html:
    """A value as HTML: what is none is escaped."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def join(parts: Iterable[str]) -> Html:
    """Pieces of HTML one after the other."""
    return Html('\n'.join(safe(part) for part in parts))


def text(value: object, kind: str = '') -> Html:
    """A paragraph."""
    return Html(f'<p class="{kind}">{safe(value)}</p>' if kind else f'<p>{safe(value)}</p>')


def missing(value: object) -> Html:
    """A paragraph that tells what is not here, and why."""
    return text(value, 'missing')


def heading(value: object) -> Html:
    """Of a part of a section."""
    return Html(f'<h3>{safe(value)}</h3>')


def table(head: Sequence[object], rows: Sequence[Sequence[object]], main: int | None = None) -> Html:
    """A table; columns whose cells are all numbers, or dashes, stand right. Row ``main`` stands out."""
    numeric = [all(_is_numeric(row[i]) for row in rows) for i in range(len(head))]
    kind = [' class="number"' if is_number else '' for is_number in numeric]
    top = ''.join(f'<th{k}>{safe(cell)}</th>' for k, cell in zip(kind, head, strict=True))
    body = []
    for i, row in enumerate(rows):
        long = [k or (' class="text"' if len(str(cell)) > _LONG else '') for k, cell in zip(kind, row, strict=True)]
        cells = ''.join(f'<td{k}>{safe(cell)}</td>' for k, cell in zip(long, row, strict=True))
        body.append(f'<tr class="main">{cells}</tr>' if i == main else f'<tr>{cells}</tr>')
    return Html(f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>')


def pairs(rows: Iterable[tuple[object, object]]) -> Html:
    """A table of names and values."""
    body = ''.join(f'<tr><td>{safe(name)}</td><td>{safe(value)}</td></tr>' for name, value in rows)
    return Html(f'<div class="wide"><table class="pairs"><tbody>{body}</tbody></table></div>')


def _is_numeric(cell: object) -> bool:
    return str(cell).lstrip('+-').replace(',', '')[:1].isdigit() or str(cell) in ('', '-')


def charts(found: Iterable[Chart | Matrix]) -> Html:
    """Charts side by side, as wide as there is room; for a light ground and for a dark one."""
    figures = []
    for chart in found:
        title, (light, dark) = escape(chart.title, quote=True), svg_uris(chart)
        figures.append(
            f'<figure class="chart"><picture><source media="(prefers-color-scheme: dark)" '
            f'srcset="{dark}"><img alt="{title}" src="{light}"></picture></figure>'
        )
    return Html(f'<div class="charts">{"".join(figures)}</div>')


def drawings(paths: Iterable[Path]) -> Html:
    """PNG files below each other, in 256 colours, which takes a third of the room."""
    figures = [
        f'<figure class="drawing"><img alt="{escape(path.stem, quote=True)}" '
        f'src="{data_uri(_in_256_colours(path), "image/png")}"><figcaption>{escape(path.name)}</figcaption></figure>'
        for path in paths
    ]
    return Html(f'<div class="drawings">{"".join(figures)}</div>')


def _in_256_colours(path: Path) -> bytes:
    file = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert('RGB').quantize(256).save(file, 'png', optimize=True)
    return file.getvalue()


def details(summary: object, content: object) -> Html:
    """Text that opens at a click."""
    return Html(f'<details><summary>{safe(summary)}</summary><pre>{safe(content)}</pre></details>')


def cards(found: Iterable[tuple[object, object]]) -> Html:
    """A few numbers in large letters: name and value."""
    body = ''.join(f'<div class="card"><span>{safe(name)}</span><b>{safe(value)}</b></div>' for name, value in found)
    return Html(f'<div class="cards">{body}</div>')


def page(title: object, sub: object, top: Html, sections: Sequence[tuple[str, str, Html]], foot: object) -> str:
    """The whole page; a section is its id, its heading and its content."""
    nav = ''.join(f'<a href="#{safe(key)}">{safe(name)}</a>' for key, name, _ in sections)
    body = '\n'.join(
        f'<section id="{safe(key)}"><h2>{safe(name)}</h2>\n{content}\n</section>' for key, name, content in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{safe(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<header><h1>{safe(title)}</h1><p class="sub">{safe(sub)}</p><nav>{nav}</nav></header>
<main>
{top}
{body}
</main>
<footer>{safe(foot)}</footer>
</body>
</html>
"""
