"""The dashboard and the alerts speak of what there is: each figure, label and value of them, and none is left out."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from mfa_service.errors import published
from mfa_service.services.audit import Event
from tests.conftest import ROOT, Clock
from tests.factories import bearer, log_in, register, sign_in

PAGE = (ROOT / "docs/observability.md").read_text()
DASHBOARD = json.loads((ROOT / "deploy/grafana/mfa_service.json").read_text())
[RULES] = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
ALERTS = {rule["alert"]: rule for rule in RULES["rules"]}
#: What a scrape adds to each series.
OF_THE_SCRAPE = {"job", "instance"}
#: Words of PromQL that are no figures.
WORDS = {"and", "or", "unless", "by", "offset"}
ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


# ── names ────────────────────────────────────────────────────────────────────────────────────────


@ON_SQLITE
def test_every_figure_and_label_that_is_asked_for_is_given(figures: "Figures") -> None:
    for where, expression in expressions():
        for name, labels, by in asked(expression):
            assert name in figures, (where, name)
            assert labels.keys() | by <= figures[name] | OF_THE_SCRAPE, (where, name)


@ON_SQLITE
def test_every_value_that_is_asked_for_can_be_given(figures: "Figures") -> None:
    codes = {error.code for error in published()}
    given = {"event": set(Event), "code": codes, "job": {"mfa_service", "$job"}, "instance": {"$instance"}}
    for where, expression in expressions():
        for _, labels, _ in asked(expression):
            for label, value in labels.items():
                if label in given:
                    assert set(value.split("|")) <= given[label], (where, value)


@ON_SQLITE
def test_the_routes_that_are_left_out_exist(metered: FlaskClient) -> None:
    routes = {rule.rule for rule in metered.application.url_map.iter_rules()}
    patterns = {labels["route"] for _, text in expressions() for _, labels, _ in asked(text) if "route" in labels}
    [pattern] = patterns
    assert {route for route in routes if re.fullmatch(pattern, route)} == {"/healthz", "/readyz", "/metrics"}


@ON_SQLITE
def test_every_figure_of_ours_is_on_the_dashboard_and_in_the_docs(figures: "Figures") -> None:
    shown = {name for _, text in of_dashboard() for name, _, _ in asked(text)}
    told = {name for row in re.findall(r"^\| (`mfa_.*?) \|", PAGE, re.M) for name in re.findall(r"`(\w+)`", row)}
    ours = {base(name) for name in figures if not name.endswith("_created")} - {"up"}
    assert {base(name) for name in shown} - {"up"} == ours
    assert {base(name) for name in told} == ours


def test_every_alarming_event_is_in_a_rule() -> None:
    asked_for = "|".join(
        labels.get("event", "") for rule in ALERTS.values() for _, labels, _ in asked(rule["expr"])
    ).split("|")
    alarming = {event for event in Event if event.value.endswith((".attacked", ".reused", ".unreadable", ".replayed"))}
    refused = {Event.PASSWORD_REFUSED, Event.CODE_REFUSED, Event.RECOVERY_CODE_REFUSED, Event.FACTOR_DISABLED}
    assert alarming | refused <= set(asked_for)


# ── form ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_rule_says_how_bad_it_is_and_what_it_is_about() -> None:
    assert len(ALERTS) == len(RULES["rules"])
    for rule in RULES["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"].endswith(".")
        assert re.fullmatch(r"\d+m", rule.get("for", "0m"))
        labels = {name for _, _, by in asked(rule["expr"]) for name in by} | OF_THE_SCRAPE
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= labels


def test_the_docs_say_what_to_do_at_each_alert() -> None:
    told = re.findall(r"^\| `(MFA[A-Za-z]+)` \| (.+) \|$", PAGE, re.M)
    assert [name for name, _ in told] == list(ALERTS)
    assert all(len(what) > 80 for _, what in told)


def test_the_scrape_in_the_docs_is_the_job_that_rules_and_dashboard_know() -> None:
    [block] = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)
    settings = yaml.safe_load(block)
    [job] = settings["scrape_configs"]
    assert job["job_name"] == RULES["name"] == "mfa_service"
    assert job["job_name"] in ALERTS["MFADown"]["expr"]
    assert job.get("metrics_path", "/metrics") == "/metrics"
    assert [(ROOT / "deploy/prometheus" / path.rpartition("/")[2]).is_file() for path in settings["rule_files"]]


def test_panels_do_not_lie_on_each_other_and_ask_the_chosen_prometheus() -> None:
    panels = DASHBOARD["panels"]
    taken = [cell for panel in panels for cell in cells(panel["gridPos"])]
    assert len(taken) == len(set(taken))
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        for asking in (panel, *panel["targets"]):
            assert asking["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$(\w+)", " ".join(text for _, text in of_dashboard()))) - {"__rate_interval"} <= variables


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("up", [("up", {}, set())]),
        ('sum by (le, route) (rate(a_b{c="x", d=~"y|z"}[5m]))', [("a_b", {"c": "x", "d": "y|z"}, {"le", "route"})]),
        ('a{c!~".*/(b|c)"} > 0 unless a offset 15m', [("a", {"c": ".*/(b|c)"}, set()), ("a", {}, set())]),
        ("histogram_quantile(0.95, x) / 2 or vector(0)", [("x", {}, set())]),
    ],
)
def test_expressions_are_read_as_they_are_meant(expression: str, found: list[Any]) -> None:
    assert list(asked(expression)) == found


# ── means ────────────────────────────────────────────────────────────────────────────────────────

#: The labels of each figure.
Figures = dict[str, set[str]]


@pytest.fixture
def metered(make_app: Callable[..., Any]) -> FlaskClient:
    client: FlaskClient = make_app(MFA_METRICS="127.0.0.1").test_client()
    return client


@pytest.fixture
def figures(metered: FlaskClient, clock: Clock) -> Figures:
    """What `/metrics` gives after a walk, and what belongs to it."""
    person = register(metered)
    metered.get("/api/profile", headers=bearer(sign_in(metered, person, clock())))
    metered.post("/auth/verify-mfa", json={"tempToken": log_in(metered, person), "totpCode": "000000"})
    found: Figures = {"up": set()}
    families = text_string_to_metric_families(metered.get("/metrics").text)
    for sample in (sample for family in families for sample in family.samples):
        found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Everything that is asked of Prometheus, and where."""
    yield from ((name, rule["expr"]) for name, rule in ALERTS.items())
    yield from of_dashboard()


def of_dashboard() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            asked_for, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
            yield variable["name"], f"sum by ({label}) ({asked_for})"


def asked(expression: str) -> Iterator[tuple[str, dict[str, str], set[str]]]:
    """Each figure in an expression, with its labels and their values, and the labels that it is summed by."""
    by = {name for names in re.findall(r"\bby \(([^)]*)\)", expression) for name in names.split(", ")}
    rest = re.sub(r"\bby \([^)]*\)|\[[^]]*\]|\boffset \w+", "", expression)
    for name, matchers in re.findall(r'\b([a-z_][a-z0-9_]*)\b(?!\s*\()(?:\{((?:[^"}]|"[^"]*")*)\})?', rest):
        if name not in WORDS:
            yield name, dict(re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', matchers)), by


def base(name: str) -> str:
    return re.sub(r"_(bucket|count|sum)$", "", name)


def cells(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    for x in range(place["x"], place["x"] + place["w"]):
        assert x < 24
        yield from ((x, y) for y in range(place["y"], place["y"] + place["h"]))
