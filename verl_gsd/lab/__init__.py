"""``verl-gsd lab``: what each algorithm does to easy and hard prompts, which are Bernoulli logits, without a model."""
