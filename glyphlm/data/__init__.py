"""Token shards on disk, and seeded batches read from them."""
