"""Publishing on the Hugging Face hub: what is pushed of a data set, a network or a LoRA, and what a pulled folder is."""
