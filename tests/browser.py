"""A real browser for tests: Debian's Chromium, headless, which knows of nothing but this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars",
)  # fmt: skip
DESKTOP = (1280, 900)
PHONE = (390, 844)


@contextmanager
def browser(
    profile: Path, size: tuple[int, int] = DESKTOP, *, dark: bool = False, scripts: bool = True
) -> Iterator[Chrome]:
    """A browser with a new profile, a window of `size` pixels, light or dark. Skips where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no browser here: apt-get install --no-install-recommends chromium chromium-driver")
    options = Options()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}", "--window-size={},{}".format(*size)):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    if not scripts:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    chrome = Chrome(options=options, service=Service(driver))
    try:
        emulate(chrome, size, dark=dark)
        yield chrome
    finally:
        chrome.quit()


def emulate(chrome: Chrome, size: tuple[int, int], *, dark: bool = False) -> None:
    """Give the window a size, below 600 pixels that of a phone, and a light or dark scheme."""
    width, height = size
    command: Any = chrome.execute_cdp_cmd
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    command("Emulation.setDeviceMetricsOverride", screen)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    command("Emulation.setEmulatedMedia", {"features": [scheme]})
