"""What can go wrong with the quarantine; the text of each says what and why, for people."""


class QuarantineError(Exception):
    """It can't be done."""


class Full(QuarantineError):  # noqa: N818 - a state: the sender is told to try later
    """There is no room for another mail."""


class NotWanted(QuarantineError):  # noqa: N818 - nobody's error
    """Whoever asked has given up meanwhile; nothing was kept."""
