"""Which samples of a set are worth training on: filters that write a new manifest, and never touch a shard."""
