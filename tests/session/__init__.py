"""Tests of smtpproxy/session/."""
