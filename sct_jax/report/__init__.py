"""What a person looks at: sample grids, curves, and one HTML file about one or several runs."""
