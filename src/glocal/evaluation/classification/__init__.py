"""Image-level protocols with labels: nearest neighbours, linear, few labels, fine-tuning."""
