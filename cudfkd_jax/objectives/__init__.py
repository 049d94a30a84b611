"""The objectives: curriculum, losses and synthesis terms, one function each."""
