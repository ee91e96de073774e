"""The networks, and the bundle they are shipped in."""
