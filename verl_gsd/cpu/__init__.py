"""verl, Ray and vLLM on a machine without a GPU: the CPU platform, and Ray workers that start as forks."""
