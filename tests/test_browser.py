"""Chromium, without a window, on the pages as they are served: cookies, policies and forms as a browser takes them."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bursts import post
from tests.conftest import program
from tests.factories import PASSWORD, totp
from tests.pages import DEVICE, PENDING, SESSION

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = [pytest.mark.services, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]

#: Wide and light, and as narrow and dark as phones are.
LOOKS = [
    {"viewport": {"width": 900, "height": 800}},
    {"viewport": {"width": 320, "height": 640}, "color_scheme": "dark"},
]


@pytest.mark.parametrize("look", LOOKS, ids=["wide", "narrow"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_somebody_signs_in_for_the_first_time_and_again(
    service: str, chromium: Any, complaints: list[str], tmp_path: Path, look: dict[str, Any], host: str
) -> None:
    address = service.replace("127.0.0.1", host)
    context = chromium.new_context(**look)
    page = watched(context, complaints)
    page.goto(f"{address}/auth/sign-in?next=/api/profile")
    give_password(page)
    assert kept(context) == {PENDING}
    press(page, "Show the QR code")
    secret = page.locator(".key").inner_text()
    assert f"secret={secret}" in scanned(page.locator(".qr"), tmp_path)
    page.get_by_label("Code").fill("000000")
    press(page, "Continue")
    assert "Invalid TOTP code" in page.get_by_role("alert").inner_text()
    page.get_by_label("Code").fill(totp(secret, int(time.time()) // 30))
    page.get_by_label("Remember this device").check()
    press(page, "Continue")
    codes = page.locator(".codes code").all_inner_texts()
    assert len(codes) == 10
    assert kept(context) == {SESSION, DEVICE}
    page.get_by_role("link", name="I have kept them").click()
    page.wait_for_url(f"{address}/api/profile")
    assert '"username":"ada"' in page.content()

    context.clear_cookies(name=SESSION)
    page.goto(f"{address}/auth/sign-in?next=/api/profile")
    give_password(page)
    page.wait_for_url(f"{address}/api/profile")

    context.clear_cookies()
    page.goto(f"{address}/auth/sign-in?next=/api/profile")
    give_password(page)
    page.get_by_role("link", name="use a recovery code").click()
    page.get_by_label("Recovery code").fill(codes[0])
    press(page, "Continue")
    page.wait_for_url(f"{address}/api/profile")
    assert complaints == []


def test_a_form_of_another_site_does_nothing(service: str, chromium: Any, complaints: list[str]) -> None:
    context = chromium.new_context()
    page = watched(context, complaints)
    page.goto(f"{service}/auth/sign-in")
    give_password(page)
    page.route("http://evil.example/", lambda route: route.fulfill(content_type="text/html", body=form_to(service)))
    page.goto("http://evil.example/")
    press(page, "Win")
    assert "Request from another origin" in page.get_by_role("alert").inner_text()
    assert kept(context) == {PENDING}


def test_the_keyboard_is_enough_and_shows_where_it_is(service: str, chromium: Any, complaints: list[str]) -> None:
    page = watched(chromium.new_context(), complaints)
    page.goto(f"{service}/auth/sign-in")
    page.locator("#username:focus").wait_for()
    page.keyboard.type("ada")
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    with page.expect_navigation():
        page.keyboard.press("Enter")
    page.wait_for_url("**/auth/authenticator?next=/")
    assert complaints == []


def test_the_document_is_shown_without_breaking_its_policy(service: str, chromium: Any, complaints: list[str]) -> None:
    page = watched(chromium.new_context(), complaints)
    page.goto(f"{service}/docs")
    operations = page.locator(".opblock-summary")
    operations.first.wait_for()
    assert operations.count() >= len(page.request.get(f"{service}/openapi.json").json()["paths"])
    operations.first.click()
    page.locator(".opblock.is-open .opblock-body").first.wait_for()
    assert complaints == []


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def service(serve: Callable[..., str]) -> str:
    """The service with pages, where somebody is registered."""
    address = serve(MFA_TOKEN_LOCATIONS="header,cookie")
    who = {"username": "ada", "password": PASSWORD, "email": "ada@example.com"}
    assert post(address, "/auth/register", who).status == 200
    return address


@pytest.fixture
def chromium() -> Iterator[Any]:
    path = program("chromium")
    with playwright.sync_playwright() as driver:
        # Root has no sandbox, and a container's shared memory is small.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def complaints() -> list[str]:
    """What browsers have complained of: broken policies, failures of scripts, what did not fit the window."""
    return []


def watched(context: Any, complaints: list[str]) -> Any:
    """A tab that listens to its console. That an answer was a refusal is no complaint."""
    page = context.new_page()

    def listen(message: Any) -> None:
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            complaints.append(message.text)

    def check(response: Any) -> None:
        if response.status >= 400 and response.request.resource_type != "document":
            complaints.append(f"{response.url}: {response.status}")

    def look(_page: Any) -> None:
        overhang = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        if overhang > 0:
            complaints.append(f"{page.url} is too wide by {overhang}")

    page.on("console", listen)
    page.on("response", check)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"{request.url}: {request.failure}"))
    page.look = look
    return page


def give_password(page: Any) -> None:
    page.get_by_label("Username").fill("ada")
    page.get_by_label("Password").fill(PASSWORD)
    press(page, "Sign in")


def press(page: Any, name: str) -> None:
    """Press a button, and look at what comes then."""
    with page.expect_navigation():
        page.get_by_role("button", name=name).click()
    page.look(page)


def kept(context: Any) -> set[str]:
    """The names of the cookies that the browser has kept, each of which is out of reach for scripts."""
    cookies = context.cookies()
    assert all(each["httpOnly"] and each["secure"] and each["sameSite"] == "Lax" for each in cookies)
    return {each["name"] for each in cookies}


def scanned(picture: Any, folder: Path) -> str:
    """What a barcode reader sees on the screen."""
    picture.screenshot(path=folder / "qr.png")
    command = [program("zbarimg"), "--quiet", "--raw", "-Sdisable", "-Sqrcode.enable", str(folder / "qr.png")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def form_to(service: str) -> str:
    return f'<form method="post" action="{service}/auth/code"><input name="code" value="1"><button>Win</button></form>'
