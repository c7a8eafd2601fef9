"""Reports of a check: a table for the terminal, JSON for programs, a page with thumbnails for people."""

from __future__ import annotations

import base64
import html
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from data_prep.check_rows import Checked, Finding
from mllm.files import write_atomically

SHOWN = 200  # findings of one kind on the page; the JSON has them all


def summary(checked: Checked) -> dict[str, Any]:
    """Counts of rows, recordings and findings, and statistics of the recordings."""
    infos = [facts.info for facts in checked.facts.values() if not facts.error]
    durations = [info["duration"] for info in infos if info.get("duration")]
    return {
        "rows": len(checked.rows),
        "recordings": len(checked.facts),
        "errors": checked.count("error"),
        "warnings": checked.count("warning"),
        "with_picture": sum(bool(info.get("has_video")) for info in infos),
        "with_sound": sum(bool(info.get("has_audio")) for info in infos),
        "rotated": sum(bool(info.get("rotation")) for info in infos),
        "seconds": round(sum(durations), 1),
        "median_seconds": round(median(durations), 2) if durations else None,
        "frame_rates": dict(
            Counter(f"{info['fps']:.4g}" for info in infos if info.get("fps")).most_common(8)
        ),
        "tasks": dict(
            Counter((row.record or {}).get("task") or "none" for row in checked.rows if row.record)
        ),
    }


def table(checked: Checked) -> Any:
    """Findings by kind, the most severe first, each with its first occurrence."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    grid = Table("", "kind", "rows", "first", box=box.SIMPLE)
    for findings in _by_kind(checked.findings):
        one = findings[0]
        first = f"{one.file} row {one.row}: {one.what}"
        colour = "red" if one.severity == "error" else "yellow"
        grid.add_row(f"[{colour}]{one.severity}[/]", one.kind, str(len(findings)), escape(first))
    return grid


def write_json(checked: Checked, path: Path) -> None:
    findings = [
        {key: value for key, value in asdict(finding).items() if value is not None}
        for finding in checked.findings
    ]
    media = {
        key.partition("\n")[0]: facts.info | ({"error": facts.error} if facts.error else {})
        for key, facts in sorted(checked.facts.items())
    }
    whole = {"summary": summary(checked), "findings": findings, "recordings": media}
    write_atomically(path, json.dumps(whole, indent=1, ensure_ascii=False))


def write_page(checked: Checked, path: Path, title: str) -> None:
    """Writes a self-contained HTML page: findings by kind, with thumbnails of the recordings."""
    thumbnails = {key.partition("\n")[0]: facts.thumbnail for key, facts in checked.facts.items()}
    counts = summary(checked)
    facts = "".join(
        f"<div><b>{html.escape(_formatted(value))}</b><span>{name.replace('_', ' ')}</span></div>"
        for name, value in counts.items()
        if value not in (None, {}, [])
    )
    kinds = list(enumerate(_by_kind(checked.findings)))
    links = "".join(
        f'<li><a href="#kind{number}">{html.escape(findings[0].kind)}</a> {len(findings)}'
        for number, findings in kinds
    )
    sections = "".join(_section(number, findings, thumbnails) for number, findings in kinds)
    page = _PAGE.replace("TITLE", html.escape(title)).replace("FACTS", facts)
    found = f"<ul>{links}</ul>{sections}" if kinds else "<p>Nothing to mend.</p>"
    write_atomically(path, page.replace("SECTIONS", found))


def _section(number: int, findings: list[Finding], thumbnails: dict[str, bytes | None]) -> str:
    one = findings[0]
    rows = "".join(_row(finding, thumbnails) for finding in findings[:SHOWN])
    more = f"<p>and {len(findings) - SHOWN} more in the JSON</p>" if len(findings) > SHOWN else ""
    heading = f"<h2 class={one.severity}>{html.escape(one.kind)} <small>{len(findings)}</small></h2>"
    return f"<section id=kind{number}>{heading}<table>{rows}</table>{more}</section>"


def _row(finding: Finding, thumbnails: dict[str, bytes | None]) -> str:
    picture = thumbnails.get(finding.media or "")
    image = ""
    if picture:
        image = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">'
    location = html.escape(f"{finding.file} row {finding.row}")
    id = f"<br><code>{html.escape(finding.id)}</code>" if finding.id else ""
    return f"<tr><td class=picture>{image}<td class=place>{location}{id}<td>{html.escape(finding.what)}</tr>"


def _by_kind(findings: Iterable[Finding]) -> list[list[Finding]]:
    kinds: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        kinds[finding.severity, finding.kind].append(finding)
    return [kinds[key] for key in sorted(kinds, key=lambda key: (key[0], -len(kinds[key])))]


def _formatted(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} ({count})" for key, count in value.items())
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


_PAGE = """<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
  body { font: 15px/1.45 system-ui, sans-serif; color: #222;
         margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
  h1 { font-size: 1.3rem; overflow-wrap: anywhere }
  h2 { font-size: 1rem; margin: 2rem 0 .4rem; padding-left: .5rem; border-left: .3rem solid #c9a400 }
  h2.error { border-color: #c0392b }
  h2 small { color: #666; font-weight: normal }
  ul { columns: 16rem; padding-left: 1.2rem }
  .facts { display: flex; flex-wrap: wrap; gap: .6rem }
  .facts div { background: #f3f4f6; border-radius: .4rem; padding: .4rem .8rem }
  .facts b { display: block }
  .facts span { color: #666; font-size: .85rem }
  table { border-collapse: collapse; width: 100% }
  td { border-top: 1px solid #e5e7eb; padding: .35rem .5rem; vertical-align: top; overflow-wrap: anywhere }
  td.picture { width: 60px }
  td.place { width: 16rem; color: #555 }
  img { width: 56px; height: 56px; object-fit: cover; border-radius: .25rem; display: block }
  code { font-size: .85em }
</style>
<h1>TITLE</h1>
<div class="facts">FACTS</div>
SECTIONS
"""
