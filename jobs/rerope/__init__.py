"""Read inputs many times longer than a rotary model was trained on, without training it again."""
