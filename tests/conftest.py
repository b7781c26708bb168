"""Settings for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Simulated runs differ much in length, and a shared machine is no clock: no deadlines.
settings.register_profile(
    "fastmtcp", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fastmtcp")
