"""The stages of a run: what each is made of, its key, how it is made and where it is kept."""
