"""Visual question answering: data sets of questions, their metrics, and running a model on them."""
