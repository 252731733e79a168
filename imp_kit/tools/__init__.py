"""What is run around the kit: the command line, the examination of a machine, measurements, the official code."""
