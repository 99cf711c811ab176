"""A reward of the tests that a policy with random weights earns sometimes, so that its groups are mixed."""


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """1 if the response has an even number of vowels and digits, else 0."""
    return {"score": float(score := sum(letter in "aeiou0123456789" for letter in solution_str) % 2 == 0), "acc": score}
