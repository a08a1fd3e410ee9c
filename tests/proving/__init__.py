"""Proving rules: transcripts and playbooks played, rules covered by them, recorded sessions put through rules."""
