"""Floor 0, the language: SMTP as values.

Octets ⇄ commands, replies, content and chunks, and the registries that say what every verb, keyword, parameter and
reply code is. Standard library only; no I/O, no clock, no log; imports nothing of ours from above.
"""
