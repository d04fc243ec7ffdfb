"""A page in the browser to explore a latent space: ``space`` computes, ``app`` shows."""
