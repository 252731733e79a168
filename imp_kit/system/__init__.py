"""What the kit asks of the system: how busy its CPUs are, which packages are there, Ctrl-C."""
