"""Terms that bring embeddings close to given ones."""
