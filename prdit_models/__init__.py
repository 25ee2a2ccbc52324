"""Plain PyTorch: networks, diffusion, samplers, intensity mapping and metric mathematics."""
