"""Training: one state pytree, one pure step, and the loop around it."""
