"""How imp-nano was trained and is measured; in the repository only, not in the wheel."""
