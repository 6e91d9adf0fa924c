"""Terms that keep embeddings apart by the shape of their distribution: no prototypes, no negatives by name."""
