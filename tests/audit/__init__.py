"""Tests of smtpproxy/audit/."""
