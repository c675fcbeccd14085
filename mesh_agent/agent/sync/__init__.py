"""Anti-entropy: the catalog follows what this node says of itself."""
