"""Our own format: manifest, typed trees, tensors with digests."""
