"""A parity set of our own: what the literal oracle computes, frozen, so that values are tested without the recorded arrays."""
