"""The Chromium of the system, for tests that need a real browser."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
needed = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium")


def launch(library: Playwright) -> Browser:
    """Starts it, headless."""
    # As root, as in a container, Chromium has no sandbox to offer.
    unconfined = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return library.chromium.launch(executable_path=CHROMIUM, args=unconfined)
