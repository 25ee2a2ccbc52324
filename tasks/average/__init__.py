"""An average of the weights, of a length chosen after training: checkpoint -> checkpoint."""
