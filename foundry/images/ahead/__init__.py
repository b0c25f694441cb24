"""Images read ahead by threads: neighbours in a container fetched together, once for all units of a node that share them."""
