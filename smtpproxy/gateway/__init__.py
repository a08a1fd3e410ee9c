"""The gateway around the proxy: the nftables text that leads connections here, and what this machine lacks for it.

Nothing here changes the machine. `nft` prints text, `doctor` looks, and what they say is for an administrator to do.
"""
