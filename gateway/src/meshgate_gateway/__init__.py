"""See docs/ for what this package is for."""
