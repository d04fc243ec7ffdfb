"""A browser that is installed: none is downloaded."""

import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import PATIENCE, needs


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    needs(path, "a page is seen in a browser (Debian: chromium)")
    with sync_playwright() as playwright:
        # As root Chromium needs --no-sandbox; the pages are our own.
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


@pytest.fixture
def new_page(browser) -> Iterator[Callable[..., Page]]:
    """Opens pages, which wait with patience and are closed after the test."""
    pages = []

    def open_(**options) -> Page:
        pages.append(browser.new_page(**options))
        pages[-1].set_default_timeout(1000 * PATIENCE)
        return pages[-1]

    yield open_
    for page in pages:
        page.close()
