"""A collection to be searched: an index that follows it, queries by image, box or patch, answers with their evidence."""
