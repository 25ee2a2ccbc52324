"""Mathematics of the evaluation metrics and their feature extractor."""
