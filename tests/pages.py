"""A browser for tests: it keeps cookies, says where a form comes from, and reads the page it was given."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from flask import Flask
from werkzeug.test import TestResponse

from tests.conftest import Clock
from tests.factories import Person, totp

OWN = "http://localhost"
SESSION, PENDING, DEVICE = (f"__Host-mfa_{name}" for name in ("session", "pending", "device"))


@dataclass
class Form:
    """Where a form goes, and what stands in it."""

    action: str
    fields: dict[str, str] = field(default_factory=dict)


class Page(HTMLParser):
    """What a page is made of: forms, links, labels, and the words that people read."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.forms: list[Form] = []
        self.links: dict[str, str] = {}
        self.codes: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self._href = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        self._open.append(tag)
        if tag == "form":
            self.forms.append(Form(values["action"] or ""))
        if tag == "a":
            self._href = values["href"] or ""
        if tag == "input" and values.get("type") != "checkbox":
            self.forms[-1].fields[values["name"] or ""] = values.get("value") or ""

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if text:
            self.words.append(text)
            if "a" in self._open:
                self.links[text] = self._href
            if "code" in self._open:
                self.codes.append(text)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, *names: str) -> list[dict[str, str | None]]:
        """The attributes of all tags of these names."""
        return [values for tag, values in self.tags if tag in names]


class Browser:
    """One browser of one person, who fills in forms and presses buttons."""

    def __init__(self, app: Flask) -> None:
        self.client = app.test_client()
        self.answer: TestResponse

    def cookie(self, name: str) -> str | None:
        kept = self.client.get_cookie(name)
        return kept.value if kept else None

    def forget(self, name: str) -> None:
        self.client.delete_cookie(name)

    @property
    def page(self) -> Page:
        return Page(self.answer.text)

    def get(self, path: str, **headers: str) -> TestResponse:
        self.answer = self.client.get(path, headers=_named({"Accept": "text/html"} | headers))
        return self.answer

    def post(self, path: str, fields: dict[str, Any] | None = None, **headers: str) -> TestResponse:
        named = _named({"Accept": "text/html", "Origin": OWN} | headers)
        self.answer = self.client.post(path, data=fields or {}, headers=named)
        return self.answer

    def press(self, form: int = 0, **typed: str) -> TestResponse:
        """Type into the page's form and send it, as it stands there."""
        there = self.page.forms[form]
        return self.post(there.action, there.fields | typed)

    def follow(self) -> TestResponse:
        """Go where the answer leads."""
        assert self.answer.status_code in (302, 303), self.answer.text
        return self.get(self.answer.headers["Location"])

    def sign_in(self, person: Person, following: str = "/there") -> TestResponse:
        """Give the right password, on the page for it."""
        self.get(f"/auth/sign-in?next={following}")
        return self.press(username=person.username, password=person.password)

    def set_up(self, clock: Clock) -> str:
        """From the page that offers an authenticator to recovery codes; returns the authenticator's secret."""
        self.press()
        secret = self.page.codes[0]
        self.press(code=totp(secret, int(clock()) // 30))
        assert self.answer.status_code == 200, self.answer.text
        return secret


def _named(headers: dict[str, str]) -> dict[str, str]:
    """Headers by their names, of arguments; one that is empty is not sent."""
    return {name.replace("_", "-"): value for name, value in headers.items() if value}
