"""Tables as text, Markdown and LaTeX, and a self-contained HTML page with curves: no script, no style sheet from
elsewhere."""

import html
import re
from collections.abc import Mapping, Sequence

Curve = Sequence[tuple[float, float]]
Cell = str | tuple[str, str]  # of a page: a text, or (text, address)
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#a463f2", "#97bbf5", "#9c6b4e")
WIDTH, HEIGHT, MARGIN = 560, 240, 44


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> str:
    """Columns aligned: the first `left` ones to the left, the rest to the right; valid as Markdown."""
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
        return f"| {' | '.join(cells)} |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if i >= left else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A `tabular` of the booktabs package."""

    def line(row: Sequence[str]) -> str:
        safe = (re.sub(r"([&%$#_{}])", r"\\\1", cell).replace("±", r"$\pm$") for cell in row)
        return " & ".join(safe) + r" \\"

    return "\n".join([
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", line(header), r"\midrule", *map(line, rows),
        r"\bottomrule", r"\end{tabular}",
    ])  # fmt: skip


def svg(title: str, x_name: str, y_name: str, curves: Mapping[str, Curve]) -> str:
    """One chart of named curves of (x, y) points."""
    points = [p for curve in curves.values() for p in curve]
    if not points:
        return ""
    x1 = max(x for x, _ in points) or 1.0
    y0, y1 = min(y for _, y in points), max(y for _, y in points)
    y1 = y1 if y1 > y0 else y0 + 1
    place = lambda x, y: (  # noqa: E731
        MARGIN + x / x1 * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN + (y0 - y) / (y1 - y0) * (HEIGHT - 2 * MARGIN)
    )  # fmt: skip
    out = [f'<svg viewBox="0 0 {WIDTH + 150} {HEIGHT}" role="img" aria-label="{html.escape(title)}">']
    out.append(f'<text x="{MARGIN}" y="16" class="title">{html.escape(title)}</text>')
    for share in (0, 0.5, 1):
        x, y = place(share * x1, y0 + share * (y1 - y0))
        out.append(f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        out.append(f'<text x="{MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{y0 + share * (y1 - y0):.3g}</text>')
        out.append(f'<text x="{x:.1f}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle">{share * x1:,.0f}</text>')
    out.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(x_name)}</text>')
    out.append(f'<text x="{MARGIN}" y="{MARGIN - 10}">{html.escape(y_name)}</text>')
    for i, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in curve))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in (place(*p) for p in curve)]
        y = MARGIN + 18 * i
        out.append(f'<rect x="{WIDTH - 30}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        out.append(f'<text x="{WIDTH - 14}" y="{y}">{html.escape(name)}</text>')
    return "".join([*out, "</svg>"])


def html_table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table for a page."""

    def cell(content: Cell) -> str:
        if isinstance(content, str):
            return html.escape(content)
        return f'<a href="{html.escape(content[1])}">{html.escape(content[0])}</a>'

    line = lambda row, tag: f"<tr>{''.join(f'<{tag}>{cell(c)}</{tag}>' for c in row)}</tr>"  # noqa: E731
    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(header, 'th')}</thead><tbody>{body}</tbody></table>"


def page(title: str, intro: str, parts: Sequence[str]) -> str:
    """A page of tables and charts; a blank line of `intro` ends a paragraph."""
    paragraphs = "".join(f"<p>{html.escape(text)}</p>" for text in intro.split("\n\n"))
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
p {{ white-space: pre-line }}
table {{ border-collapse: collapse; margin: 1rem 0 }} th, td {{ padding: .3rem .8rem; text-align: right }}
th {{ border-bottom: 2px solid #444 }} td {{ border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums }}
th:nth-child(-n+2), td:nth-child(-n+2) {{ text-align: left }}
svg {{ width: 100%; max-width: 44rem; display: block; margin: 1rem 0 }} svg text {{ font: 11px system-ui; fill: #333 }}
svg .title {{ font-weight: 600; font-size: 13px }} .grid {{ stroke: #e4e4e4 }}
</style></head><body><h1>{html.escape(title)}</h1>{paragraphs}
{"".join(parts)}</body></html>
"""
