"""Floor 2, evidence: a session's records → lines. Imports `smtp/` and the session's records."""
