"""Commands about recorded training histories and their explanations."""
