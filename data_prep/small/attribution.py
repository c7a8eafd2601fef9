"""The credit that a model trained on the sets must give, for its card."""

from __future__ import annotations

from collections.abc import Iterable

from data_prep.small.sets import Recording, known_sets


def attribution(recordings: Iterable[Recording]) -> str:
    """Markdown: each set with source, licence, changes and doubts, and the credits of single recordings."""
    by_set: dict[str, list[Recording]] = {}
    for recording in recordings:
        by_set.setdefault(recording.set, []).append(recording)
    lines = ["# Recordings that this was trained on", ""]
    for entry in known_sets().values():
        of_set = by_set.get(entry["name"])
        if not of_set:
            continue
        lines += [f"## {entry['name']}", "", f"{entry['title']}. {entry['source']}  "]
        lines += [f"Licence: {entry['licence']}. Changes: {entry['changed']}. {len(of_set)} recordings."]
        if doubt := entry.get("doubt"):
            lines += [f"{doubt}"]
        credits = {_credit(recording.credit) for recording in of_set if recording.credit}
        lines += ["", *(f"- {credit}" for credit in sorted(credits))] if credits else []
        lines.append("")
    return "\n".join(lines)


def _credit(credit: dict[str, str]) -> str:
    """One line: title, author, page, licence."""
    by = f" by {credit['author']}" if credit.get("author") else ""
    title = f"“{credit['title']}”{by}, " if credit.get("title") else ""
    return f"{title}{credit.get('url', 'no page given')} ({credit.get('licence', 'licence of the set')})"
