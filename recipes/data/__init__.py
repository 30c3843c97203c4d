"""What a network is trained on: text as tokens, and images."""
