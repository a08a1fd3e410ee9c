"""Floor 3, the outside: sockets, signals, the clock. Imports all below; trio."""
