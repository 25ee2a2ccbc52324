"""A toy model of chest CT: an autoencoder, and a denoiser with a critic on its latents."""
