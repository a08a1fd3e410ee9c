"""Floor 1, one proxied conversation: the ledger and what obeys it. Imports `smtp/` only; no I/O, no clock, no log."""
