"""What uses the package to ask questions of the method. Not in the wheel."""
