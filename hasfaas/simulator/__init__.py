"""Virtual time: any scaler, over many functions, on the product's own rules for batches, replicas and lanes."""
