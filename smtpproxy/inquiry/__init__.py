"""Asking the store: searching, showing, counting, handing on."""
