"""Asking the record."""
