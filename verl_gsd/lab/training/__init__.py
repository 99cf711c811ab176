"""``verl-gsd lab train``: training in one process by the objects of the stack, without Ray, vLLM or a queue."""
