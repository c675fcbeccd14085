"""The sidecar injector: a mutating admission webhook that makes pods members of the mesh (docs/adr/0003)."""
