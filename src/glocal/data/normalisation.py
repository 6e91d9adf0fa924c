"""Mean and deviation of ImageNet's training pixels, on which most released weights expect their input."""

from __future__ import annotations

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
