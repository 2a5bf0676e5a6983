"""Open WebUI as a person uses it: its page in headless Chromium, Debian's or the one that CHROMIUM names."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

#: The page loads some megabytes of code and an answer takes seconds on two cores (seconds).
PATIENCE_S = 60.0

WIDTH, HEIGHT = 1000, 640

#: A small model that answers with the most probable words may repeat them without an end.
PARAMETERS = {"temperature": 0, "max_tokens": 200}


@dataclass(frozen=True)
class ChatPage:
    """A page on which somebody is signed in, with a new chat."""

    page: "Page"

    def ask(self, text: str) -> "Locator":
        """Send a message; gives the place of its answer."""
        number = self.answers.count()
        self.page.locator("#chat-input").click()
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")
        answer = self.answers.nth(number)
        answer.wait_for(state="attached")
        return answer

    @property
    def answers(self) -> "Locator":
        return self.page.locator("#response-content-container")

    @property
    def stop(self) -> "Locator":
        """The button that is there as long as an answer is being written."""
        return self.page.get_by_role("button", name="Stop", exact=True)

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A notice is on its way in otherwise.
        self.page.screenshot(path=path, animations="disabled")


@contextlib.contextmanager
def signed_in(url: str, email: str, password: str) -> Iterator[ChatPage]:
    """Sign in by the page's own form. Before that, the user's settings say that the release notes have been read, and
    that answers are the most probable ones and end."""
    # Not among the packages of the other tests.
    from playwright.sync_api import sync_playwright

    with httpx2.Client(base_url=url, timeout=PATIENCE_S) as client:
        session = client.post("/api/v1/auths/signin", json={"email": email, "password": password}).raise_for_status()
        settings = {"version": client.get("/api/version").json()["version"], "params": PARAMETERS}
        client.post(
            "/api/v1/users/user/settings/update",
            json={"ui": settings},
            headers={"authorization": f"Bearer {session.json()['token']}"},
        ).raise_for_status()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(PATIENCE_S * 1000)
        page.goto(url)
        page.locator("#email").fill(email)
        page.locator("input[type=password]").fill(password)
        page.keyboard.press("Enter")
        page.locator("#chat-input").wait_for()
        yield ChatPage(page)
        browser.close()
