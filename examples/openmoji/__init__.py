"""The small world: scenes composed of OpenMoji drawings, and the scripts that train the shipped models on them."""
