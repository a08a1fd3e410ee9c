"""Tests of smtpproxy/policy/."""
