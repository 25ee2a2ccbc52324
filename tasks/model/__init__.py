"""What several stages share: a trained model out of its checkpoint, what it sees of a volume, where it computes."""
