"""Did it work? What can be said of a run without a single label: figures, one score of them, and a diagnosis in words."""
