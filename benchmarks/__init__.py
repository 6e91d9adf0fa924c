"""Measurements of every promised ratio, and the studies that defaults rest on."""
