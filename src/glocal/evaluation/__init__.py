"""Evaluation: every protocol a file; `base.evaluate` runs one by name, `compare.compare` sets results side by side."""
