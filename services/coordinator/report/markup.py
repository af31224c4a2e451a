"""Pieces of a page: tables, sections, lines. Everything given is escaped here."""

from collections.abc import Iterable, Sequence
from html import escape

from shared.db.tables import Json
from shared.schemas.formatting import interval

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c2321;background:#fbfaf7;max-width:1080px;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}
.sub{color:#5c6663;overflow-wrap:anywhere}
.warning{background:#fff1d6;border-left:4px solid #c2571a;padding:.6rem .9rem;margin:1rem 0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #e3e1da;vertical-align:top}
th{font-weight:600;color:#5c6663}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(340px,1fr));gap:1.2rem}
figure{margin:0;background:#fff;border:1px solid #e3e1da;border-radius:6px;padding:.8rem}
figcaption{font-weight:600}svg{width:100%;height:auto}svg text{font-size:11px;fill:#5c6663}
.grid{stroke:#e9e7e0}.guide{stroke:#1c2321;stroke-dasharray:2 3}
.legend span{margin-right:1rem;font-size:.85rem}
.legend i{display:inline-block;width:22px;border-top:3px solid;margin-right:.35rem;
vertical-align:middle}
@media print{body{background:#fff}}
"""


def warning(report: Json) -> str:
    text = report.get("warning")
    return f'<p class="warning">{escape(text)}</p>' if text else ""


def section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}" if body else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def notes(rates: Iterable[Json | None]) -> str:
    """What is to be known of them, each note once."""
    found = dict.fromkeys(note for rate in rates if rate and (note := rate.get("note")))
    return "".join(f'<p class="sub">{escape(note)}</p>' for note in found)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def document(title: str, subtitle: Sequence[str], body: Sequence[str]) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<h1>{escape(title)}</h1><p class="sub">{escape(" · ".join(subtitle))}</p>'
        f"{''.join(body)}</body></html>"
    )


def versus_section(found: Sequence[Json]) -> str:
    """Thinking minus direct; empty where there is no baseline."""
    if not found:
        return ""
    against = [
        [versus.get(key) or {} for key in ("win_rate", "win_rate_against_direct_seed")]
        for versus in found
    ]
    kinds = ("raw", "length_controlled")
    rows = [
        (
            str(versus.get("number", "")),
            interval(versus["difference"], signed=True),
            *(interval(rate.get(kind)) for rate in rates for kind in kinds),
            str(versus["difference"]["n"]),
        )
        for versus, rates in zip(found, against, strict=True)
    ]
    header = (
        *("", "score, thinking - direct", "thinking wins against direct", "length-controlled"),
        *("thinking wins against the direct seed", "length-controlled", "prompts"),
    )
    text = notes([*found, *(rate for rates in against for rate in rates)])
    return section("Thinking and direct, on the same prompts", text + table(header, rows))


def judge_lines(report: Json) -> list[str]:
    judges = report.get("judges") or {}
    return [f"{what} judge {judges[what]}" for what in ("training", "validation") if what in judges]
