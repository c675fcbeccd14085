"""Checks that look at something: HTTP, TCP, UDP, gRPC, a script, a systemd unit."""
