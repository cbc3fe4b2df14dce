"""What was published on images: numbers as CSV, and the settings of the runs that answer to them."""
