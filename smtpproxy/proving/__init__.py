"""Proving rules: playbooks, which test them; and what else tells what a rule would do before it does it."""
