"""Says which classes a trained network finds in image files."""
