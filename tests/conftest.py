"""Hypothesis profiles: `fast` for every run, `deep` for a night (HYPOTHESIS_PROFILE=deep)."""

import os
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

_CHECKS = (HealthCheck.too_slow, HealthCheck.data_too_large)

settings.register_profile("fast", max_examples=50, derandomize=True, deadline=None, suppress_health_check=_CHECKS)
settings.register_profile("deep", max_examples=5000, deadline=None, suppress_health_check=_CHECKS)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


@pytest.fixture(autouse=True)
def _log_as_configured_by_nobody() -> Iterator[None]:
    """A test of the command line configures the operational log; the next test has it as it was."""
    yield
    structlog.reset_defaults()
