"""What makes hostile files and runs the program on them."""
