"""Hypothesis profiles: `fast` for every run, `deep` for a night (HYPOTHESIS_PROFILE=deep)."""

import os

from hypothesis import HealthCheck, settings

_CHECKS = (HealthCheck.too_slow, HealthCheck.data_too_large)

settings.register_profile("fast", max_examples=50, derandomize=True, deadline=None, suppress_health_check=_CHECKS)
settings.register_profile("deep", max_examples=5000, deadline=None, suppress_health_check=_CHECKS)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))
