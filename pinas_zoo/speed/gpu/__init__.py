"""`pinas benchmark gpu`: one bounded run that shows that everything is right on a GPU, and how fast it is."""
