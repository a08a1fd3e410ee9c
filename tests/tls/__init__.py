"""Tests of smtpproxy/tls/."""
