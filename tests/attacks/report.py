"""The report: per case held, broken, or not run and why, with the request and the answer that show it."""

import html
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.attacks.case import CASES, NEEDS, Case
from tests.attacks.target import Answer, Call, Target, redacted

HELD, BROKEN, NOT_RUN = "held", "broken", "not run"
#: How the reason begins where a case should have been run.
UNTRIED = "could not be tried"
_LONGEST = 300
#: So many exchanges of one case are counted by their status.
_MANY = 10
#: Seconds that a case should take, and those after which the run fails: a machine may be slow, but not so slow.
LONG, TOO_LONG = 10, 30
#: The same of all cases together.
WHOLE_LONG, WHOLE_TOO_LONG = 600, 1800


@dataclass(frozen=True)
class Result:
    """What became of one case on one target."""

    target: str
    case: Case
    verdict: str
    why: str = ""
    seconds: float = 0.0
    shown: str = ""


def shown(exchange: tuple[Call | bytes, Answer]) -> str:
    """A request and its answer, short and without anything that anybody could use."""
    call, answer = exchange
    told = f"{answer.status or 'closed'} {answer.text}" if answer.headers else repr(answer.content)[2:-1] or "closed"
    if isinstance(call, bytes):
        asked = repr(call)[2:-1]
    else:
        asked = f"{call.method} {call.path} {call.content.decode(errors='backslashreplace')}"
        asked += " (Bearer …)" if call.token else ""
        if call.path.startswith("/api/admin") and answer.status == 200:
            told = f"200 ({len(answer.content)} bytes, not shown: they may be about others)"
    return "\n→ ".join(short(redacted(part)) for part in (asked, told))


def evidence_of(target: Target, verdict: str) -> str:
    """What shows the verdict: what the case says shows it, else its last exchange; where it broke, both."""
    exchanges, last = target.exchanges, target.exchanges[-1:]
    told = [exchange for exchange in exchanges if exchange[1] is target.shown]
    told += [exchange for exchange in last if verdict == BROKEN and exchange not in told]
    lines = [shown(exchange) for exchange in told or last]
    lines += [short(redacted(target.note))] if target.note else []
    if len(exchanges) >= _MANY:
        numbers = Counter(str(answer.status or "closed") for _, answer in exchanges)
        lines.append(
            f"of {len(exchanges)} answers: {', '.join(f'{n} × {status}' for status, n in numbers.most_common())}"
        )
    return "\n".join(lines)


def short(text: str) -> str:
    text = " ".join(text.split())
    text = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


def unmet(case: Case, offers: frozenset[str]) -> str:
    """Why a target can't show a case."""
    return "; ".join(NEEDS[need] for need in case.needs if need not in offers)


def durations(results: list[Result]) -> str:
    """How long each target took, the slowest case, and all that took longer than they should."""
    run = sorted((each for each in results if each.verdict != NOT_RUN), key=lambda each: -each.seconds)
    told = [f"{each.case.number} on {each.target} {each.seconds:.1f} s" for each in run]
    long = [text for text, each in zip(told, run, strict=True) if each.seconds > LONG]
    over = f"over {LONG} s: {', '.join(long) or 'none'}"
    wholes = by_target(run)
    whole = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in wholes.items()) or "nothing was run"
    much = f" (more than {WHOLE_LONG} s)" if any(seconds > WHOLE_LONG for seconds in wholes.values()) else ""
    return f"{whole}{much}; slowest: {told[0] if told else 'none'}; {over}"


def by_target(results: list[Result]) -> Counter[str]:
    """Seconds that all cases on a target took; several targets are attacked at the same time."""
    found: Counter[str] = Counter()
    for each in results:
        found[each.target] += each.seconds  # type: ignore[assignment]
    return found


def too_long(results: list[Result]) -> list[str]:
    """What took so long that no slow machine explains it."""
    found = [f"{each.case.number} on {each.target} took {each.seconds:.0f} s" for each in results]
    found = [text for text, each in zip(found, results, strict=True) if each.seconds > TOO_LONG]
    wholes = by_target(results).items()
    return found + [f"all on {name} took {whole:.0f} s" for name, whole in wholes if whole > WHOLE_TOO_LONG]


def markdown(results: list[Result], head: dict[str, str], titles: dict[str, str], left: list[str]) -> str:
    place = {number: index for index, number in enumerate(CASES)}
    results = sorted(results, key=lambda result: (place[result.case.number], result.target != "stack"))
    lines = [
        "# Attack report",
        "",
        "How the suite works and how to point it at a deployment: [attacks](attacks.md).",
        "",
    ]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in head.items())]
    lines += [f"| how long | {durations(results)} |", ""]
    targets = list(dict.fromkeys(result.target for result in results))
    lines += ["| target | held | broken | not run | seconds |", "|---|---|---|---|---|"]
    for target in targets:
        mine = [result for result in results if result.target == target]
        counts = [sum(result.verdict == verdict for result in mine) for verdict in (HELD, BROKEN, NOT_RUN)]
        cells = [titles.get(target, target), *counts, round(sum(result.seconds for result in mine))]
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    lines += ["", f"Left behind: {', '.join(left) if left else 'nothing'}.", ""]
    lines += ["| case | what must hold | " + " | ".join(targets) + " | stems from |", "|---" * (3 + len(targets)) + "|"]
    for number in dict.fromkeys(result.case.number for result in results):
        lines.append(row([result for result in results if result.case.number == number], targets))
    return "\n".join([*lines, "", *not_run(results), "## What showed it", "", *evidence(results)]) + "\n"


def row(mine: list[Result], targets: list[str]) -> str:
    found = {result.target: result for result in mine}
    verdicts = [f"**{found[t].verdict}**" if found[t].verdict == BROKEN else found[t].verdict for t in targets]
    case = mine[0].case
    return f"| {case.number} | {case.holds} | {' | '.join(verdicts)} | {case.stems_from} |"


def not_run(results: list[Result]) -> list[str]:
    """What was not run, and why."""
    mine = [result for result in results if result.verdict == NOT_RUN]
    rows = [f"| {each.case.number} | {each.target} | {short(redacted(each.why))} |" for each in mine]
    table = ["| case | target | why |", "|---|---|---|", *rows]
    return ["## Not run", "", *(table if mine else ["Nothing was left out."]), ""]


def evidence(results: list[Result]) -> list[str]:
    lines = []
    for result in (each for each in results if each.verdict != NOT_RUN):
        what = f"{result.case.number} on {result.target}: {result.verdict}"
        why = f" ({short(redacted(result.why))})" if result.why else ""
        lines += [f"**{what}**{why}", ""]
        lines += [f"<pre>{html.escape(result.shown)}</pre>", ""] if result.shown else []
    return lines


def junit_kind(result: Result) -> str:
    """What JUnit calls it: what could not be tried makes the run red, and is an error; what is not offered is none."""
    if result.verdict == NOT_RUN:
        return "error" if result.why.startswith(UNTRIED) else "skipped"
    return "failure" if result.verdict == BROKEN else ""


def write_junit(results: list[Result], path: Path) -> None:
    suite = ElementTree.Element("testsuite", name="attacks", tests=str(len(results)))
    kinds = Counter(junit_kind(result) for result in results)
    suite.set("failures", str(kinds["failure"]))
    suite.set("errors", str(kinds["error"]))
    suite.set("skipped", str(kinds["skipped"]))
    for result in results:
        name = f"{result.case.number} {result.case.holds}"
        entry = ElementTree.SubElement(suite, "testcase", classname=result.target, name=name)
        entry.set("time", f"{result.seconds:.2f}")
        if kind := junit_kind(result):
            ElementTree.SubElement(entry, kind, message=short(redacted(result.why)))
        ElementTree.SubElement(entry, "system-out").text = result.shown
    ElementTree.ElementTree(suite).write(path, "utf-8", xml_declaration=True)
