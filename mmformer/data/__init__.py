"""Samples: shards and their manifest, the order they are read in, decoding, transforms, mixtures."""
