"""What several stages share: loading a model from its checkpoint, what it sees of a volume, where it computes."""
