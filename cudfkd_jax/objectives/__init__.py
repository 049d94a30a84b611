"""What is minimised: the curriculum, the losses and the terms, one function each."""
