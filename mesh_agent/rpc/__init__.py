"""Agent to server and server to server: which server to ask, and how to be sure that it is one."""
