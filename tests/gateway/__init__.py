"""A gateway in network namespaces: what `smtpproxy nft` prints is loaded there, and `smtpproxy doctor` looks at it."""
