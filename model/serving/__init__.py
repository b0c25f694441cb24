"""Image server: requests in OpenAI's form, drawn together step by step, with adapters by name and metrics."""
