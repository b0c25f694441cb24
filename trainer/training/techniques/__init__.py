"""Training techniques that add a loss: each a module, composed by a plain list."""
