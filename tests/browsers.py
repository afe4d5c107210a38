"""A browser without scripts, and a phone beside it.

The browser keeps cookies, fills in forms, and says where a request comes from, as real ones do. Cookies that are
`Secure` are kept and sent although tests speak http: TLS is what a proxy has.
"""

import html
import http.client
import re
import time
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from urllib.parse import urlencode, urljoin, urlsplit

from tests.factories import totp


@dataclass
class Page:
    """An answer, and where it came from."""

    path: str
    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def target(self) -> str:
        """Where a redirect leads."""
        return self.headers["Location"]

    @property
    def key(self) -> str:
        """The secret of a new authenticator."""
        return re.search(r'class="key">(\w+)', self.text)[1]


@dataclass
class Browser:
    """One browser on one site. `origin` is what its address bar shows, where that is not the address itself."""

    address: str
    origin: str = ""
    cookies: dict[str, str] = field(default_factory=dict)
    page: Page | None = None

    def __post_init__(self) -> None:
        self.origin = self.origin or self.address

    def get(self, path: str, **headers: str) -> Page:
        """Go to an address, without following redirects."""
        return self.send("GET", path, None, named(headers))

    def post(self, path: str, form: dict[str, str] | None = None, **headers: str) -> Page:
        """Send a form from a page of this site."""
        # A page that sends no referrer makes its forms come from "null".
        is_silent = self.page is not None and self.page.headers.get("Referrer-Policy") == "no-referrer"
        own = {"Origin": "null" if is_silent else self.origin, "Sec-Fetch-Site": "same-origin"}
        return self.send("POST", path, form or {}, own | named(headers))

    def submit(self, **fields: str) -> Page:
        """Fill in the first form of the page that is shown, and send it."""
        _, attributes, inner = re.search(r"<(form)([^>]*)>(.*?)</form>", self.page.text, re.S).groups()
        action = re.search(r'action="([^"]*)"', attributes)
        hidden = re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', inner)
        path = html.unescape(action[1]) if action else self.page.path
        return self.post(path, {name: html.unescape(value) for name, value in hidden} | fields)

    def follow(self, page: Page) -> Page:
        """Go where redirects lead."""
        while page.status in (302, 303):
            url = urlsplit(urljoin(self.origin + page.path, page.target))
            assert f"{url.scheme}://{url.netloc}" in (self.origin, self.address)
            page = self.get(url.path + (f"?{url.query}" if url.query else ""))
        return page

    def send(self, method: str, path: str, form: dict[str, str] | None, headers: dict[str, str]) -> Page:
        """One request, with whatever headers."""
        given = {"Host": urlsplit(self.origin).netloc, "Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
        given |= {"Cookie": self.cookie} if self.cookies else {}
        given |= headers
        body = None
        if form is not None:
            body, given["Content-Type"] = urlencode(form), "application/x-www-form-urlencoded"
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=20)
        try:
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            self.page = Page(path, answer.status, answer.headers, answer.read().decode())
        finally:
            connection.close()
        self._keep(self.page)
        return self.page

    @property
    def cookie(self) -> str:
        """What goes into the header of that name."""
        return "; ".join(f"{name}={value}" for name, value in self.cookies.items())

    def _keep(self, page: Page) -> None:
        for line in page.headers.get_all("Set-Cookie", []):
            for name, morsel in SimpleCookie(line).items():
                if morsel["max-age"] == "0" or "1970" in morsel["expires"]:
                    self.cookies.pop(name, None)
                else:
                    self.cookies[name] = morsel.value


def named(headers: dict[str, str]) -> dict[str, str]:
    """Headers that were written as keywords."""
    return {name.replace("_", "-"): value for name, value in headers.items()}


class Phone:
    """Somebody's authenticator; a code works once, so each is of another step."""

    def __init__(self, secret: str = "") -> None:
        self.secret, self._last = secret, 0

    def code(self) -> str:
        """A code that has not been shown yet; four of them within one step."""
        self._last = max(self._last + 1, int(time.time()) // 30 - 1)
        return totp(self.secret, self._last)
