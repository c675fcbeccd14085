"""Who is alive: SWIM with Lifeguard, wire-compatible with memberlist and serf."""
