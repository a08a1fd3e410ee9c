"""TLS as far as it is no connection: contexts, certificates, verdicts, and what can be read in a ClientHello."""
