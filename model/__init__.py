"""The leaf for networks: text encoder, autoencoder, diffusion transformer, sampling."""
