"""The quarantine: mails that rules held back, until somebody releases or erases them."""
