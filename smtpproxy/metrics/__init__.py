"""What the proxy counts, and how Prometheus gets it."""
