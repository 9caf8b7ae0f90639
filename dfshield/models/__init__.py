"""Networks, checkpoints and what is computed of them."""
