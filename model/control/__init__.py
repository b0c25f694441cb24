"""Controls: copies of a network's first blocks that make it follow a control image; trained, stored, put into the network."""
