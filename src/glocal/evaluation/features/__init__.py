"""From images to frozen features, streamed, kept on disk and the same in any batch, worker and process."""
