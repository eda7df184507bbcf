"""What training minimises: the loss with the labels, and that with teachers."""
