"""Who computes the shards: this process (local)."""
