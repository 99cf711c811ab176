"""Fine-grained scores of responses, in addition to the verifier's right or wrong: scorers, prompts, cache, judge."""
