"""Who may speak: SPIFFE identities, the datacenter's certificate authority, the trust bundle."""
