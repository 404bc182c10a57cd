"""The scalers that ours is measured against, behind the same interface: `lookup.named` makes one by its name."""
