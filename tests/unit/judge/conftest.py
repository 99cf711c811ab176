"""A fixture for all tests of judges."""

import pytest


@pytest.fixture(autouse=True)
def _no_certificates(monkeypatch):
    """Skip loading certificates, which takes 50 ms per client. The servers in these tests use plain HTTP."""
    monkeypatch.setattr("ssl.SSLContext.load_verify_locations", lambda *_, **__: None)
