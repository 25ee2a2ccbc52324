"""What there is to know of one volume or one snapshot of a store."""
