"""What an imported trace's source had and the trace has not, for people."""

from __future__ import annotations

from typing import Any

from faultreplay.faulttrace.meta import Meta

_MOST = 12


def imported_facts(meta: Meta) -> list[str]:
    """Lines on the source: its notes, its unreadable lines and each event that was not taken, with why."""
    said: dict[str, Any] = meta.extra.get("import") or {}
    facts = [f"import: {note}" for note in said.get("notes", ()) if not note.startswith("events not taken")]
    not_taken = said.get("not_taken", [])
    for event in not_taken[:_MOST]:
        place = f" (the first: line {event['first_line']})" if event["first_line"] else ""
        facts.append(f"not taken: {event['count']:,} {event['event']}{place}: {event['why']}")
    if len(not_taken) > _MOST:
        rest = not_taken[_MOST:]
        count = sum(event["count"] for event in rest)
        facts.append(f"not taken: {count:,} events of {len(rest)} more names: {', '.join(e['event'] for e in rest)}")
    return facts


def losses_words(meta: Meta) -> str:
    """How many events were lost; "not known" if the source does not report it."""
    losses = meta.losses
    if losses.total:
        by_probe = sorted(losses.by_probe.items(), key=lambda pair: -pair[1])
        return f"losses: {losses.total:,} events ({', '.join(f'{name} {count:,}' for name, count in by_probe)})"
    told = (meta.extra.get("import") or {}).get("losses_told", True)
    return "losses: none" if told else "losses: not known, the source does not report them"
