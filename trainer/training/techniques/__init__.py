"""Training techniques: losses that are added, each a module, composed by a plain list; Muon; LoRA."""
