"""Tests of smtpproxy/smtp/."""
