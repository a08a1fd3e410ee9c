"""The registries: every verb, EHLO keyword, MAIL and RCPT parameter and reply code, one literal row each.

A row is the only place that knows a name. The parser, the session, the rules, `smtpproxy explain` and
`docs/commands.md` all read the same row, so that stripping, refusing, framing and explaining can't disagree.
"""
