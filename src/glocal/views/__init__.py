"""Views: from a decoded image to its crops, on the CPU, and on to what the networks see, on the device."""
