"""From a command line to a finished process: compose, check, launch, and the process of one run."""
