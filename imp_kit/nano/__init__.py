"""imp-nano, the small checkpoint that comes with the kit."""
