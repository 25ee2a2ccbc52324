"""Model families: what can be trained and sampled. One file and one row of `FAMILIES` each."""
