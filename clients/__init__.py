"""The Flower client side: a silo that owns a pre-trained model and private data."""
