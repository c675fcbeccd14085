"""A lab of real systemd hosts in several datacenters on one machine: systemd-nspawn over overlayfs, in network namespaces of its own.

Nothing here touches the machine's own network namespace: the lab is closed, and `down` leaves nothing.
"""
