"""From audio files to a DATASET: plans, downloads, decoding, duplicates, splits, shards. Nothing else imports this."""
