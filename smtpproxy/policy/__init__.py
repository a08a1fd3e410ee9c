"""Floor 2, rules: files → a judge. Imports `smtp/` and the session's verdicts; no I/O after loading."""
