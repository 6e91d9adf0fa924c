"""Terms in which not embeddings are compared but how they lie to each other."""
