"""Small modules shared by backbones and methods."""
