"""All that is open on a GPU, measured by one command: `make gpu`."""
