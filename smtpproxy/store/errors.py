"""What can go wrong with a store."""


class StoreError(Exception):
    """The store can't be opened, read or written; the text says why."""
