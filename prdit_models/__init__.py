"""Plain PyTorch: networks, diffusion processes and samplers, model families, intensity mapping, metrics."""
