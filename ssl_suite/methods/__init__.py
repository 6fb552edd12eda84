"""The methods, one file each, in folders by their place in a model's life."""
