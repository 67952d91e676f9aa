"""Changes to a gallery between two snapshots, and servers that follow them."""
