"""The rules that come with smtpproxy, and the page on testing rules."""
