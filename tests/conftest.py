"""What all tests share: fast ones run first, and large matrices run whole only when asked."""

from __future__ import annotations

import signal
import threading

import hypothesis
import pytest

# A run for everybody draws the same examples each time; `--whole` draws new ones, and many.
hypothesis.settings.register_profile("fast", max_examples=25, deadline=None, derandomize=True)
hypothesis.settings.register_profile("whole", max_examples=500, deadline=None, print_blob=True)


def pytest_addoption(parser):
    parser.addoption("--whole", action="store_true", help="run every case of the large matrices")


def pytest_configure(config):
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts what runs in the background deaf to Ctrl-C, and children inherit that: some tests press it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    hypothesis.settings.load_profile("whole" if config.getoption("--whole") else "fast")


def pytest_collection_modifyitems(config, items):
    """Leave out what is marked `whole` unless asked for, and put what is marked `slow` last."""
    if not config.getoption("--whole"):
        left_out = [item for item in items if item.get_closest_marker("whole")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("whole")]
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)  # stable: otherwise as written


@pytest.fixture(scope="session")
def whole(pytestconfig):
    """Whether large matrices run whole; without, a test takes a fixed sample of its cases."""
    return pytestconfig.getoption("--whole")
