"""What a benchmark's rows come to: one line per row and sampler, as table, page, CSV and LaTeX."""
