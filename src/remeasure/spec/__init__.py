"""What is asked for and what came out: frozen dataclasses, standard library only."""
