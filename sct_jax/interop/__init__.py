"""Other projects' weights, in and out: names and layouts of their parameters, their files, without their code."""
