"""`pinas benchmark gpu`: one bounded run that shows on a GPU that everything is right, and how fast it is."""
