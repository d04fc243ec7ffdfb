"""A browser that is installed: none is downloaded."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.conftest import needs


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    needs(path, "a page is seen in a browser (Debian: chromium)")
    with sync_playwright() as playwright:
        # As root Chromium needs --no-sandbox; the pages are our own.
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
