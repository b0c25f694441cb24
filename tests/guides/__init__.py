"""The pages that show how things are done: their commands parse, and their answers are true."""
