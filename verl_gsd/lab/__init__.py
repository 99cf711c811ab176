"""What each algorithm does to easy and hard prompts, seen on Bernoulli logits: no model, a minute."""
