"""Protocols on images with masks: linear, nearest patches, retrieval, clusters."""
