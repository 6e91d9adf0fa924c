"""The run: its configuration, networks, loop, optimiser, checkpoints, monitors and folder."""
