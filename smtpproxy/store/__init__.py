"""Where the record is kept: blocks of lines with a tree over them, an index to find them by, sinks that follow."""
