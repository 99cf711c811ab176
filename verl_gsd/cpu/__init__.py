"""verl, Ray and vLLM on a machine without a GPU: the platform, and workers that start as forks."""
