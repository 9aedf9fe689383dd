"""How weights move, on images in memory or in files, with one engine or another."""
