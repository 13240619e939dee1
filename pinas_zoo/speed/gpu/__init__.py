"""`pinas benchmark gpu`: one bounded run that shows that results are correct on a GPU, and how fast it is."""
