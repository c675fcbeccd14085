"""Controllers of a Kubernetes cluster: the trust bundle in namespaces, services both ways, and config entries as custom resources.

Each is a pure function from what the cluster and the mesh hold now to the steps that are missing, and that is all there is to remember: a restart, a lost
watch or a crash between two steps only means that the same question is asked again.
"""
