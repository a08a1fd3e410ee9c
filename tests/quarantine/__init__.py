"""The quarantine: the store, and sending its mails on."""
