"""smtpproxy, a transparent SMTP inspecting proxy."""

__version__ = "0.1.0"
