"""What is a slice: discovery, and one reader a format."""
