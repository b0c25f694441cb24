"""YAML files of settings, as every command and prompt set reads them."""
