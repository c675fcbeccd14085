module mesh.openmesh.io/artifacts/pause

go 1.26.0
