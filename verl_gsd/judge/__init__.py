"""Fine-grained scores of responses, beside the verifier's right and wrong: scorers, prompt, cache, who asks them."""
