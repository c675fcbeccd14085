"""The agent as a process: builds every part and wires them."""
