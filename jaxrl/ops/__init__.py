"""Mathematics: arrays in, arrays out. No networks, no state, no environments."""
