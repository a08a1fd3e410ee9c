"""Tests of smtpproxy/net/."""
