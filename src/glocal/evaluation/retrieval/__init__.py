"""Which image was this made from, and which show the same: copy detection and instance retrieval."""
