"""Post-hoc EMA: checkpoint -> checkpoint with an average of the weights whose length is chosen after training."""
