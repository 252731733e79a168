"""What the lessons that build compute and draw: a module or a folder for each notebook."""
