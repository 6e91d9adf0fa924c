"""Backbones, heads, the teacher; loading of released weights and export of ours."""
