"""One Chromium for all tests of the report."""

import pytest
from chromium import Browser, find_chromium


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium; the test skips without one, or fails where one is required."""
    find_chromium()
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found
