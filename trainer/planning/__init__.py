"""GPU-days, money, memory and disk of a training, before it starts."""
