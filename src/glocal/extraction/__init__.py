"""From images to features, streamed and kept on disk: what `embed`, search, probes and protocols share."""
