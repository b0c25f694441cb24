"""LoRA adapters: low-rank changes of a network's linear layers, trained, stored, and added to its weights."""
