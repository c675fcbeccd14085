"""Consul's HTTP API and the internal RPC: a small HTTP/1.1 server and client on httptools, and the routes."""
