"""The mathematics of diffusion models, written against `eps_hat = denoiser(x_t, t, cond)` alone."""
