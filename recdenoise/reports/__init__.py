"""What people look at: progress on a terminal, tables, pictures."""
