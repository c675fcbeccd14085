"""The Kubernetes cluster around this node: which pods run here, what they register, how they prove who they are."""
