"""Terms in which an embedding is told apart from those of other images."""
