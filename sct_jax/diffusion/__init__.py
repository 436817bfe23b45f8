"""The noising process: pure functions of arrays. No network, no state, no input or output."""
