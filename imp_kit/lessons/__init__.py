"""What the lessons compute and draw in which a reader builds and trains: a module for each."""
