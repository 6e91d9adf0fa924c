"""What to keep of a collection and how often to see it: copies found with their evidence, clusters, balanced weights."""
