"""From a command line and conf/ to a checked Config; nothing else sees a DictConfig."""
