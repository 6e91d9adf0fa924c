"""Objects without a label: found in an image, followed through a video."""
