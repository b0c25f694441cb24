"""Images and their metadata: found, indexed, read, decoded."""
